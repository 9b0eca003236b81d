"""Python's garbage collector, in a process that does nothing but serve."""

import gc


def freeze_modules() -> None:
    """Never search what has been made so far for garbage.

    Imported modules are hundreds of thousands of objects that will never be garbage, and looking at
    all of them takes tens of milliseconds, in which every query waits. What is made from now on is
    little, and searched as often as Python has it: garbage that waits makes memory grow for good,
    by the gaps between what lasts.
    """
    gc.collect()
    gc.freeze()
