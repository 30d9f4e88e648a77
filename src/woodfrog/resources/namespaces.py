"""What belongs to the container's namespaces: clocks, host name, domain name."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from woodfrog.errors import UnsupportedResource, WoodfrogError
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.namespaces import CLONE_NEWTIME, CLONE_NEWUSER, FLAGS
from woodfrog.kernel.procfs.status import read_status
from woodfrog.kernel.user_namespace import become_root

_NS = 1_000_000_000


def pid_namespace(pid: int) -> str:
    """Return the identity of a process's pid namespace."""
    return os.readlink(f"/proc/{pid}/ns/pid")


def refuse_shared_pid_namespace(init: int) -> None:
    """Refuse a container whose processes can't be told from the host's."""
    if pid_namespace(init) == os.readlink("/proc/self/ns/pid"):
        raise UnsupportedResource(
            "the container shares the host's pid namespace, which cannot be saved yet",
            hint="give it a pid namespace of its own",
        )


def refuse_joined_pid_namespace(init: int) -> None:
    """Refuse a container that has no pid namespace of its own."""
    refuse_shared_pid_namespace(init)
    if read_status(f"/proc/{init}")["NStgid"].split()[-1] != "1":
        raise UnsupportedResource(
            "the container has joined the pid namespace of another one, which cannot be saved yet",
            hint="give it a pid namespace of its own",
        )


def offsets(pid: int | str) -> tuple[int, int]:
    """Return how far CLOCK_MONOTONIC and CLOCK_BOOTTIME of a process's future children are ahead.

    In nanoseconds, of those that the host has.
    """
    found = {"monotonic": 0, "boottime": 0}
    try:
        with open(f"/proc/{pid}/timens_offsets", encoding="ascii") as file:
            for name, seconds, nanoseconds in map(str.split, file):
                found[name] = int(seconds) * _NS + int(nanoseconds)
    except FileNotFoundError:
        pass  # no time namespaces in this kernel
    return found["monotonic"], found["boottime"]


def offsets_in(descriptor: int) -> tuple[int, int]:
    """Return that for the time namespace that a descriptor names."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            HERE.call(SYS.SETNS, descriptor, CLONE_NEWTIME)
            os.write(tell, b"%d %d" % offsets("self"))
        finally:
            os._exit(0)
    os.close(tell)
    with os.fdopen(told, "rb") as file:
        words = file.read().split()
    os.waitpid(child, 0)
    if len(words) != 2:
        raise WoodfrogError("cannot read the offsets of a time namespace")
    return int(words[0]), int(words[1])


def clocks(init: int) -> tuple[int, int]:
    """Return CLOCK_MONOTONIC and CLOCK_BOOTTIME as a process sees them, in nanoseconds."""
    theirs, ours = own_offsets(init), offsets("self")
    return (
        time.clock_gettime_ns(time.CLOCK_MONOTONIC) - ours[0] + theirs[0],
        time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ours[1] + theirs[1],
    )


def own_offsets(pid: int) -> tuple[int, int]:
    """Return that for a process's own clocks, which its children may not have."""
    try:
        if os.readlink(f"/proc/{pid}/ns/time") == os.readlink(f"/proc/{pid}/ns/time_for_children"):
            return offsets(pid)
    except FileNotFoundError:
        return 0, 0
    descriptor = os.open(f"/proc/{pid}/ns/time", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return offsets_in(descriptor)
    finally:
        os.close(descriptor)


def time_offsets(monotonic_ns: int, boottime_ns: int) -> bytes:
    """Return what to write to /proc/PID/timens_offsets so that the clocks go on from there."""
    now = clocks(os.getpid())
    return offsets_text(monotonic_ns - now[0], boottime_ns - now[1])


def offsets_text(monotonic_ns: int, boottime_ns: int) -> bytes:
    """Return what to write to /proc/PID/timens_offsets for these offsets."""
    lines = []
    for name, offset in (("monotonic", monotonic_ns), ("boottime", boottime_ns)):
        seconds, nanoseconds = divmod(offset, _NS)
        lines.append(f"{name} {seconds} {nanoseconds}\n")
    return "".join(lines).encode()


def is_ours(pid: int, kind: str) -> bool:
    """Tell whether a process is in the same namespace as we are."""
    return os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}")


def as_its_root(init: int, work: Callable[[], None]) -> None:
    """Do something as the root of a container's user namespace, if it has one of its own."""
    if is_ours(init, "user"):
        work()
        return
    namespace = os.open(f"/proc/{init}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            HERE.call(SYS.SETNS, namespace, CLONE_NEWUSER)
            become_root()
            work()
        except BaseException as error:
            lines = [str(error), *getattr(error, "__notes__", ())]
            os.write(tell, "\n".join(lines).encode(errors="replace")[:4096])
        finally:
            os._exit(0)
    os.close(namespace)
    os.close(tell)
    with os.fdopen(told, "rb") as file:
        message, *notes = file.read().decode(errors="replace").split("\n")
    os.waitpid(child, 0)
    if message:
        failure = WoodfrogError(message)
        for note in notes:
            failure.add_note(note)
        raise failure


@contextmanager
def inside(pid: int, kind: str) -> Iterator[None]:
    """Be in one of another process's namespaces; our other threads stay where they are."""
    theirs = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with within(theirs, kind):
            yield
    finally:
        os.close(theirs)


@contextmanager
def within(descriptor: int, kind: str) -> Iterator[None]:
    """Be in the namespace that a descriptor names; our other threads stay where they are."""
    ours = os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        HERE.call(SYS.SETNS, descriptor, FLAGS[kind])
        try:
            yield
        finally:
            HERE.call(SYS.SETNS, ours, FLAGS[kind])
    finally:
        os.close(ours)


def names() -> tuple[bytes, bytes]:
    """Return the host name and the NIS domain name of the uts namespace that we are in."""
    found = bytearray(6 * 65)  # struct new_utsname
    HERE.call(SYS.UNAME, found)
    return bytes(found[65:]).split(b"\0")[0], bytes(found[5 * 65 :]).split(b"\0")[0]


def set_domainname(pid: int, name: bytes) -> None:
    """Set the NIS domain name in a process's uts namespace."""
    with inside(pid, "uts"):
        HERE.call(SYS.SETDOMAINNAME, name, len(name))


def set_hostname(pid: int, name: bytes) -> None:
    """Set the host name in a process's uts namespace."""
    with inside(pid, "uts"):
        HERE.call(SYS.SETHOSTNAME, name, len(name))
