"""How this process asks the system for memory."""

import ctypes
from contextlib import suppress

# glibc's name for the setting (mallopt(3)), and how many heaps threads share.
M_ARENA_MAX = -8
ARENAS = 2


def share_heaps() -> None:
    """Lets all threads share two heaps. To be called before there are any.

    By default glibc gives each thread a heap, up to eight a core, and each keeps what its largest update once took:
    measured as 34 to 64 MB of an aggregator with five clients. Does nothing where the C library is another one.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_ARENA_MAX, ARENAS)


def return_memory() -> None:
    """Gives the system back what a round's uploads took, before the merge asks for its own; takes milliseconds."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
