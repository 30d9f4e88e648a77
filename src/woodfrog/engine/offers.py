"""What this kernel offers us, found by trying, and what is lost without it."""

import os
from collections.abc import Callable
from typing import NamedTuple

from woodfrog.errors import WoodfrogError
from woodfrog.kernel import features, userfaultfd
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.netlink import nftables, sock_diag
from woodfrog.kernel.pagemap import Pagemap
from woodfrog.kernel.process import PR_SET_MM, pidfd_exit_status, pidfd_getfd, pidfd_open
from woodfrog.remote.scratch import room_needed
from woodfrog.remote.vdso import own_vdso

_PR_SET_MM_MAP_SIZE = 15
_KCMP_FILE = 0


class Offer(NamedTuple):
    """Something that a kernel may have or not. Without what is `needed` nothing can be frozen."""

    name: str
    is_there: bool
    loss: str
    needed: bool = False


def offers() -> list[Offer]:
    """Try everything; what is needed comes first."""
    nothing = "no checkpoint and no restore"
    return [
        Offer("CONFIG_CHECKPOINT_RESTORE", _works(_set_mm), nothing, True),
        Offer("CONFIG_KCMP", _works(_kcmp), nothing, True),
        Offer("room behind the vDSO", _works(_vdso), nothing, True),
        Offer("CONFIG_UNIX_DIAG", _works(_unix_sockets), nothing, True),
        Offer("CONFIG_INET_DIAG", _works(_tcp_sockets), nothing, True),
        Offer("pidfd_getfd", _works(_pidfd_getfd), nothing, True),
        Offer(
            "time namespaces",
            os.path.exists("/proc/self/ns/time"),
            "restores need --clock=host: clocks jump",
        ),
        Offer("nf_tables", _works(_nftables), "TCP connections are kept by no flag"),
        Offer(
            "overlayfs", _has_file_system("overlay"), "neither `do` nor --with-rootfs are possible"
        ),
        Offer("memory files can be run", _runs_memory_files(), "no restore: vm.memfd_noexec is 2"),
        Offer("mseal (Linux 6.10)", features.mseal(), "sealed memory comes back unsealed"),
        Offer("MAP_DROPPABLE (Linux 6.11)", features.droppable(), "such memory is never dropped"),
        Offer(
            "PAGEMAP_SCAN (Linux 6.7)",
            _works(lambda: _scan(guards=False)),
            "pages are found more slowly; the shared zero page is stored",
        ),
        Offer(
            "PAGEMAP_SCAN of guards (Linux 6.16)",
            _works(lambda: _scan(guards=True)),
            "guard regions (MADV_GUARD_INSTALL) aren't found: they are restored without a guard",
        ),
        Offer(
            "userfaultfd notes what is written to (Linux 6.7)",
            _works(_noted_writes),
            "a checkpoint with --parent compares all memory with the parent's",
        ),
        Offer(
            "PR_TIMER_CREATE_RESTORE_IDS (Linux 6.15)",
            features.timer_restore_ids(),
            "POSIX timers with high ids are restored slowly",
        ),
        Offer(
            "exit status by pidfd (Linux 6.15)",
            _works(_pidfd_tells_exits),
            "`wait` doesn't know how a container has ended that another process reaped",
        ),
        Offer(
            "PIDFD_THREAD (Linux 6.9)",
            features.pidfd_thread(),
            "processes whose first thread has ended before others are refused",
        ),
        Offer(
            "eventfd tells its mode (Linux 6.5)",
            _works(_eventfd_mode),
            "it is found by reading",
        ),
    ]


def _works(probe: Callable[[], object]) -> bool:
    try:
        return probe() is not False
    except (OSError, WoodfrogError):
        return False


def _set_mm() -> bool:
    size = bytearray(4)
    HERE.call(SYS.PRCTL, PR_SET_MM, _PR_SET_MM_MAP_SIZE, size, 0, 0)
    return any(size)


def _kcmp() -> bool:
    own = os.getpid()
    descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return HERE.call(SYS.KCMP, own, own, _KCMP_FILE, descriptor, descriptor) == 0
    finally:
        os.close(descriptor)


def _vdso() -> bool:
    return own_vdso().room >= room_needed()


def _unix_sockets() -> None:
    with sock_diag.diag_socket(os.getpid()) as diag:
        sock_diag.unix_sockets(diag)


def _tcp_sockets() -> None:
    with sock_diag.diag_socket(os.getpid()) as diag:
        sock_diag.tcp_sockets(diag)


def _pidfd_getfd() -> None:
    pidfd = pidfd_open(HERE, os.getpid())
    try:
        os.close(pidfd_getfd(HERE, pidfd, pidfd))
    finally:
        os.close(pidfd)


def _pidfd_tells_exits() -> bool:
    child = os.fork()
    if child == 0:
        os._exit(0)
    pidfd = pidfd_open(HERE, child)
    try:
        os.waitpid(child, 0)
        return pidfd_exit_status(HERE, pidfd) == 0
    finally:
        os.close(pidfd)


def _nftables() -> None:
    nftables.look(os.getpid())


def _has_file_system(name: str) -> bool:
    with open("/proc/filesystems", encoding="ascii") as file:
        return any(line.split()[-1] == name for line in file)


def _runs_memory_files() -> bool:
    try:
        with open("/proc/sys/vm/memfd_noexec", encoding="ascii") as file:
            return file.read().strip() != "2"
    except FileNotFoundError:
        return True


def _scan(*, guards: bool) -> bool:
    with Pagemap(os.getpid()) as pagemap:
        return pagemap.scans_guards() if guards else pagemap.scans()


def _noted_writes() -> bool:
    if not features.wanted(features.NOTED_WRITES):
        return False
    descriptor = userfaultfd.create(HERE, kernel_too=False)
    try:
        userfaultfd.begin_to_note(HERE, descriptor)
        return True
    finally:
        os.close(descriptor)


def _eventfd_mode() -> bool:
    if not features.wanted(features.EVENTFD_SEMAPHORE):
        return False
    descriptor = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
            return "eventfd-semaphore" in file.read()
    finally:
        os.close(descriptor)
