"""Python's garbage collector, in a process that does nothing but serve."""

import gc

THRESHOLD = 10_000
"""How many more objects there are before new ones are searched for garbage."""


def search_seldom() -> None:
    """Never search what has been made so far for garbage, and what is made from now on seldom.

    Imported modules are hundreds of thousands of objects that will never be garbage, and looking at
    all of them takes tens of milliseconds, in which every query waits.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(THRESHOLD, *gc.get_threshold()[1:])
