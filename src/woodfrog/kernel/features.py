"""What this kernel can do, found by trying, never by version.

WOODFROG_WITHOUT=name,name makes the named features count as absent, so that the fallbacks are
tested on a kernel that has them.
"""

import os
from functools import cache

PAGEMAP_SCAN = "pagemap_scan"  # Linux 6.7
PAGEMAP_GUARD = "pagemap_guard"  # Linux 6.16: PAGEMAP_SCAN tells guard regions
TIMER_RESTORE_IDS = "timer_restore_ids"  # Linux 6.15
PIDFD_THREAD = "pidfd_thread"  # Linux 6.9: a pidfd of a thread that is not its process's first
EVENTFD_SEMAPHORE = "eventfd_semaphore"  # Linux 6.5: fdinfo tells
# No matter of the kernel: what is restored in the background comes only when it is touched.
FILLING_AHEAD = "filling_ahead"

NEWER_THAN_6_1 = (PAGEMAP_SCAN, PAGEMAP_GUARD, TIMER_RESTORE_IDS, PIDFD_THREAD, EVENTFD_SEMAPHORE)


@cache
def disabled() -> frozenset[str]:
    """Return the features that the environment asks us to do without."""
    return frozenset(filter(None, os.environ.get("WOODFROG_WITHOUT", "").split(",")))


def wanted(feature: str) -> bool:
    """Tell whether a feature may be tried."""
    return feature not in disabled()


@cache
def timer_restore_ids() -> bool:
    """Tell whether PR_TIMER_CREATE_RESTORE_IDS exists (PR_TIMER_CREATE_RESTORE_IDS_GET works)."""
    from woodfrog.kernel.abi.x86_64 import SYS
    from woodfrog.kernel.caller import HERE

    if not wanted(TIMER_RESTORE_IDS):
        return False
    try:
        return HERE.call(SYS.PRCTL, 77, 2, 0, 0, 0) >= 0
    except OSError:
        return False


@cache
def pidfd_thread() -> bool:
    """Tell whether pidfd_open(2) takes PIDFD_THREAD."""
    from woodfrog.kernel.abi.x86_64 import SYS
    from woodfrog.kernel.caller import HERE

    if not wanted(PIDFD_THREAD):
        return False
    try:
        os.close(HERE.call(SYS.PIDFD_OPEN, os.getpid(), os.O_EXCL))
    except OSError:
        return False
    return True
