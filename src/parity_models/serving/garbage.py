"""Python's garbage collector, in a process that does nothing but serve."""

import gc


def freeze_modules() -> None:
    """Exempt all present objects from garbage collection.

    Imported modules are hundreds of thousands of objects that will never be garbage, and looking at
    all of them takes tens of milliseconds, in which every query waits. New objects are few, and
    collected as often as Python does by default: with rarer collections, memory would fragment and
    grow for good.
    """
    gc.collect()
    gc.freeze()
