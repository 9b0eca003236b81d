"""Python's garbage collector, in a process that does nothing but serve."""

import gc

THRESHOLDS = (1_000, 10, 100)
"""How many more objects there are before the youngest are searched for garbage; after how many such
searches those that survived one are, and after how many of these all."""


def search_seldom() -> None:
    """Never search what has been made so far for garbage, and all that is made from now on seldom.

    Imported modules are hundreds of thousands of objects that will never be garbage, and looking at
    all of them takes tens of milliseconds, in which every query waits. The youngest are few, and
    searched often: what they hold would be memory that the process keeps.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
