"""How the C library keeps memory."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
LARGEST = 32 * 2**20  # the largest threshold that mallopt takes on 64 bits


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, in place of giving it back to the system. Elsewhere this does nothing.

    Sweeps and training steps free and take again some ten megabytes hundreds of times a second; the page faults of that
    were measured to cost a third of the time of certifying images. It holds for the whole process, so only the
    command line and the trainer ask for it; call it where your own loop trains.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # no such function in this system's library
        return
    mallopt(MMAP_THRESHOLD, LARGEST)
    mallopt(TRIM_THRESHOLD, 2**31 - 1)
