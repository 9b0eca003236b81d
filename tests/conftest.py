"""What holds for all tests."""

import signal

# A shell starts what it runs in the background with interrupts ignored, and processes inherit
# that; the tests of Ctrl-C are to hold there, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
