"""ROOT: turn the waiting init of a created container into the root stub."""

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from woodfrog.kernel import ptrace, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE, checked
from woodfrog.kernel.mounts import AT_EMPTY_PATH
from woodfrog.kernel.namespaces import CLONE_NEWTIME
from woodfrog.kernel.ptrace import Event
from woodfrog.kernel.syscalls import F_DUPFD
from woodfrog.remote import descriptors, stub
from woodfrog.remote.program import LOOP
from woodfrog.remote.stub import Stub
from woodfrog.remote.vdso import Vdso, vdso_of
from woodfrog.resources import limits, namespaces
from woodfrog.resources.container import ContainerRecord

STUB_BYTES = 32 << 20  # of memory for a stub's programs

RLIMIT_NOFILE = 7
_LIMIT = struct.Struct("<2Q")
_PRIVATE_ANONYMOUS, _MAP_FIXED = 0x22, 0x10
_MEMFD_CLOEXEC, _MFD_EXEC = 1, 0x10


class Injection:
    """Single calls in the waiting init, before it is a stub."""

    def __init__(self, pid: int, vdso: Vdso) -> None:
        self.pid = pid
        self._registers = ptrace.registers(pid)
        start = vdso_of(pid)
        self.instruction = start + vdso.syscall
        self.memory = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        self.page = self.call(SYS.MMAP, 0, 8192, 3, _PRIVATE_ANONYMOUS, -1, 0)

    def call(self, number: int, *arguments: int) -> int:
        """Make one call; raises OSError."""
        stub.make_call(self.pid, self._registers, self.instruction, number, arguments)
        return checked(number, ptrace.registers(self.pid).result)

    def put(self, data: bytes, at: int = 0) -> int:
        """Write into the page; returns the address."""
        os.pwrite(self.memory, data, self.page + at)
        return self.page + at

    def execute(self, fd: int) -> None:
        """Become the program behind a descriptor, with no arguments and an empty environment."""
        empty = self.put(bytes(8))
        name = self.put(b"woodfrog-stub\0", 64)
        argv = self.put(struct.pack("<2Q", name, 0), 128)
        arguments = (fd, empty, argv, empty, AT_EMPTY_PATH)
        stub.exec_into(self.pid, self._registers, self.instruction, arguments)
        os.close(self.memory)


def executable(base: int, size: int) -> int:
    """Return a descriptor of the stub's program."""
    try:
        fd = os.memfd_create("woodfrog-stub", _MEMFD_CLOEXEC | _MFD_EXEC)
    except OSError:
        fd = os.memfd_create("woodfrog-stub", _MEMFD_CLOEXEC)  # before Linux 6.3
    os.write(fd, stub.executable(base, size))
    return fd


def make(
    init: int,
    base: int,
    size: int,
    vdso: Vdso,
    *,
    high: int,
    pages: int,
    time_offsets: bytes | None,
) -> tuple[Stub, int]:
    """Make a stub of init; returns it and its descriptor of the page store.

    Descriptors of ours start at `high` in the stub. From here on init dies with us.
    """
    hold(init)
    injection = Injection(init, vdso)
    if time_offsets is not None:
        injection.call(SYS.UNSHARE, CLONE_NEWTIME)
        with open(f"/proc/{init}/timens_offsets", "wb", buffering=0) as file:
            file.write(time_offsets)
    program = executable(base, size)
    try:
        theirs, store = descriptors.send(
            init, injection.memory, injection.page, injection.call, [program, pages]
        )
    finally:
        os.close(program)
    store = injection.call(SYS.FCNTL, store, F_DUPFD, high)
    injection.execute(theirs)
    return settle(init, base, size, vdso), store


def hold(init: int) -> None:
    """Stop the waiting init; from here on it dies with us."""
    ptrace.seize(init, stub.OPTIONS)
    ptrace.interrupt(init)
    ptrace.wait(init)


def raise_descriptor_limit(pid: int) -> tuple[int, int]:
    """Let a process, and the stubs that come of it, have as many descriptors as any may have.

    Returns the hard limit that it had, which holds again from LIMITS on, and the one it has now.
    """
    _, hard = limits.in_force(pid)[RLIMIT_NOFILE]
    with open("/proc/sys/fs/nr_open") as file:
        most = max(int(file.read()), hard)
    try:
        syscalls.prlimit(HERE, pid, RLIMIT_NOFILE, _LIMIT.pack(most, most), None)
    except PermissionError:  # without CAP_SYS_RESOURCE on the host
        syscalls.prlimit(HERE, pid, RLIMIT_NOFILE, _LIMIT.pack(hard, hard), None)
        return hard, hard
    return hard, most


@contextmanager
def raised_descriptor_limit(one: Stub) -> Iterator[None]:
    """Let a process of a container have more descriptors for a moment than it may."""
    now = limits.in_force(one.pid)[RLIMIT_NOFILE]
    raise_own_descriptor_limit(one)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it has ended
            _set_own_limit(one, RLIMIT_NOFILE, now)


@contextmanager
def raised_signal_limit(one: Stub) -> Iterator[None]:
    """Let more signals wait for a process of a container for a moment than may."""
    soft, hard = limits.in_force(one.pid)[limits.SIGPENDING]
    most = limits.NONE if limits.may_exceed_hard() else hard
    _set_own_limit(one, limits.SIGPENDING, (most, most))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it has ended
            _set_own_limit(one, limits.SIGPENDING, (soft, hard))


def raise_own_descriptor_limit(one: Stub) -> None:
    """Let a stub with a program's rights have as many descriptors as it may."""
    try:
        raise_descriptor_limit(one.pid)
    except PermissionError:
        _, hard = limits.in_force(one.pid)[RLIMIT_NOFILE]
        _set_own_limit(one, RLIMIT_NOFILE, (hard, hard))


def raise_memory_limits(pid: int, bounds: Mapping[str, tuple[int, int]]) -> None:
    """Let a process, and the stubs that come of it, have as much memory as any may have.

    That is what it may set itself, or as much as the new container's config says. The soft limits
    that it has are those of our command.
    """
    in_force = limits.in_force(pid)
    for which in limits.OF_MEMORY:
        soft, hard = in_force[which]
        _, most = bounds.get(limits.NAMES[which], (0, 0))
        for wanted in (max(most, hard), hard):
            if wanted == soft == hard:
                break
            with suppress(PermissionError):  # without CAP_SYS_RESOURCE
                syscalls.prlimit(HERE, pid, which, limits.packed(wanted, wanted), None)
                break


def raise_own_memory_limits(one: Stub) -> None:
    """Let a stub with a program's rights have as much memory as it may."""
    in_force, has_no_hard = limits.in_force(one.pid), limits.may_exceed_hard()
    for which in limits.OF_MEMORY:
        most = limits.NONE if has_no_hard else in_force[which][1]
        if in_force[which] != (most, most):
            _set_own_limit(one, which, (most, most))


def _set_own_limit(one: Stub, which: int, limit: tuple[int, int]) -> None:
    """Do it from outside, or have the stub do it.

    Without CAP_SYS_RESOURCE we may set no limit of another user's process; but it may itself.
    """
    try:
        syscalls.prlimit(HERE, one.pid, which, _LIMIT.pack(*limit), None)
    except PermissionError:
        program = one.program()
        syscalls.prlimit(program, 0, which, _LIMIT.pack(*limit), None)
        one.run(program)


def settle(pid: int, base: int, size: int, vdso: Vdso) -> Stub:
    """Take over a task that has just executed the stub's program.

    Its code moves from the program's file into memory of its own: a process may take another
    /proc/PID/exe only when nothing of the old one is mapped (prctl(2), PR_SET_MM_EXE_FILE).
    """
    # The end of execveat: the next stop after the event is its exit.
    ptrace.resume_to_call(pid)
    status = ptrace.wait(pid)
    if status.event is not Event.CALL:
        raise stub.StubError(f"process {pid} did not become a stub: {status}")
    ptrace.set_signal_mask(pid, stub.MASK)
    made = Stub(pid, base, size)
    start = vdso_of(pid)
    made.call_at(
        start + vdso.syscall,
        SYS.MMAP,
        base,
        4096,
        5,
        _PRIVATE_ANONYMOUS | _MAP_FIXED,
        -1,
        0,
    )
    os.pwrite(made.memory, LOOP, base)
    return made


def set_names(init: int, container: ContainerRecord) -> None:
    """Give the container the host and domain name that a program had chosen, if one had."""
    if container.hostname != container.spec_hostname:
        namespaces.set_hostname(init, container.hostname)
    if container.domainname != (container.spec_domainname or b"(none)"):
        namespaces.set_domainname(init, container.domainname)


def end(init: int) -> None:
    """End a container whose restore failed: its first process takes all others with it."""
    try:
        os.kill(init, 9)
    except ProcessLookupError:
        return
    # All tasks are ours to wait for; the last one to go is init.
    while True:
        try:
            status = ptrace.wait(-1)
        except ChildProcessError:
            return
        if status.pid == init and status.event in (Event.EXITED, Event.KILLED):
            return
