"""Memory that stays with the process between steps."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # numbers of mallopt's parameters


def keep_freed_memory() -> bool:
    """Ask glibc's allocator to keep freed memory instead of giving it back to the system.

    Every step on a CPU allocates and frees the same tensors, of tens of MB each. By default their pages go back to the
    system and come again, cleared, one page fault each, which takes about a tenth of the time of a forward pass. The
    setting holds for the whole process; its peak memory stays what it was.

    Returns:
        Whether there is such an allocator.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # Up to what size; 32 MiB is the most that an older glibc accepts.
    kept = any(mallopt(_MMAP_THRESHOLD, size) == 1 for size in (2**30, 32 * 2**20))
    return kept and all(
        mallopt(key, value) == 1 for key, value in ((_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 * 2**20))
    )
