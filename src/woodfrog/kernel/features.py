"""What this kernel can do, found by trying, never by version.

WOODFROG_WITHOUT=name,name makes the named features count as absent, so that the fallbacks are
tested on a kernel that has them.
"""

import os
from collections.abc import Callable
from functools import cache

PAGEMAP_SCAN = "pagemap_scan"  # Linux 6.7
PAGEMAP_GUARD = "pagemap_guard"  # Linux 6.16: PAGEMAP_SCAN tells guard regions
TIMER_RESTORE_IDS = "timer_restore_ids"  # Linux 6.15
PIDFD_THREAD = "pidfd_thread"  # Linux 6.9: a pidfd of a thread that is not its process's first
EVENTFD_SEMAPHORE = "eventfd_semaphore"  # Linux 6.5: fdinfo tells
MSEAL = "mseal"  # Linux 6.10
DROPPABLE = "droppable"  # Linux 6.11: MAP_DROPPABLE
LOCK_ON_FAULT = "lock_on_fault"  # smaps tells of MLOCK_ONFAULT
NOTED_WRITES = "noted_writes"  # Linux 6.7: UFFD_FEATURE_WP_ASYNC
PROCFS_OF_PIDS = "procfs_of_pids"  # Linux 6.17: a procfs of another pid namespace
MOUNT_ID_MAPS = "mount_id_maps"  # Linux 6.15: statmount(2) tells id maps of mounts
# No matter of the kernel: what is restored in the background comes only when it is touched.
FILLING_AHEAD = "filling_ahead"

NEWER_THAN_6_1 = (
    PAGEMAP_SCAN,
    PAGEMAP_GUARD,
    TIMER_RESTORE_IDS,
    PIDFD_THREAD,
    EVENTFD_SEMAPHORE,
    MSEAL,
    DROPPABLE,
    LOCK_ON_FAULT,
    NOTED_WRITES,
    PROCFS_OF_PIDS,
    MOUNT_ID_MAPS,
)


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


@cache
def mseal() -> bool:
    """Tell whether mseal(2) exists."""
    from woodfrog.kernel.abi.x86_64 import SYS
    from woodfrog.kernel.caller import HERE

    return wanted(MSEAL) and _works(lambda: HERE.call(SYS.MSEAL, 0, 0, 0))


@cache
def droppable() -> bool:
    """Tell whether mmap(2) knows MAP_DROPPABLE."""
    from woodfrog.kernel.abi.x86_64 import SYS
    from woodfrog.kernel.caller import HERE

    def try_it() -> None:
        droppable_anonymous = 0x28
        HERE.call(SYS.MUNMAP, HERE.call(SYS.MMAP, 0, 4096, 3, droppable_anonymous, -1, 0), 4096)

    return wanted(DROPPABLE) and _works(try_it)


@cache
def shows_lock_on_fault() -> bool:
    """Tell whether smaps has a flag for memory that is locked as it is touched."""
    from woodfrog.kernel.abi.x86_64 import SYS
    from woodfrog.kernel.caller import HERE
    from woodfrog.kernel.procfs.maps import read_smaps

    if not wanted(LOCK_ON_FAULT):
        return False
    private_anonymous, mlock_onfault = 0x22, 1
    # Not a neighbour of others: it would become one with them.
    start = HERE.call(SYS.MMAP, 0, 3 * 4096, 0, private_anonymous, -1, 0)
    try:
        HERE.call(SYS.MLOCK2, start + 4096, 4096, mlock_onfault)
        return any("lf" in one.flags for one in read_smaps("self") if one.start == start + 4096)
    except OSError:
        return False
    finally:
        HERE.call(SYS.MUNMAP, start, 3 * 4096)


def _works(try_it: Callable[[], object]) -> bool:
    try:
        try_it()
    except OSError:
        return False
    return True
