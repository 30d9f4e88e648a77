"""The heap of this process, as its C library keeps it."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed(most: int) -> None:
    """Keep so many bytes that were freed, which next time need not come from the kernel again."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return  # not every C library has that
    for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        mallopt(parameter, most)
