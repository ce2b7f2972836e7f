"""Memory allocator settings."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # numbers of mallopt's parameters


def keep_freed_memory() -> bool:
    """Let glibc's allocator keep freed memory, for the whole process.

    Every step on a CPU allocates and frees the same tensors of tens of MB. By default their pages return to the system
    and come back by page faults, in about a tenth of the time of a forward pass. Peak memory does not change.

    Returns:
        Whether the process uses this allocator.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # Older versions of glibc accept at most 32 MiB.
    kept = any(mallopt(_MMAP_THRESHOLD, size) == 1 for size in (2**30, 32 * 2**20))
    return kept and all(
        mallopt(key, value) == 1 for key, value in ((_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 * 2**20))
    )
