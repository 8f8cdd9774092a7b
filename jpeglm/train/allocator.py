"""glibc's memory allocator, told to keep what is freed."""

import ctypes

# <malloc.h>; M_TRIM_THRESHOLD -1 and M_MMAP_MAX 0 switch trimming and mapping off.
_SETTINGS = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_TOP_PAD": (-2, 256 << 20)}


def keep_freed_memory() -> bool:
    """Makes the process keep the memory that it frees, for its next allocations. Returns whether it does.

    On a CPU each step allocates its temporaries anew. Memory from the system is not there until it is touched, page by
    page, and glibc returns large blocks to the system at once; so without this the same pages are zeroed at each step.
    The process then gives nothing back: it holds the most that it ever needed, and what lies unused between. With
    another C library nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(*setting) for setting in _SETTINGS.values()])
