"""What belongs to the container's namespaces: clocks, host name, domain name."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from woodfrog.errors import UnsupportedResource, WoodfrogError
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.namespaces import CLONE_NEWUSER
from woodfrog.kernel.user_namespace import become_root

_FLAGS = {"uts": 0x04000000, "ipc": 0x08000000, "cgroup": 0x02000000, "net": 0x40000000}
_OFFSET = re.compile(r"(monotonic|boottime)\s+(-?\d+)\s+(-?\d+)")
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


def clocks(pid: int) -> tuple[int, int]:
    """Return CLOCK_MONOTONIC and CLOCK_BOOTTIME as a process sees them, in nanoseconds."""
    offsets = {"monotonic": 0, "boottime": 0}
    ours = {"monotonic": 0, "boottime": 0}
    for where, into in ((str(pid), offsets), ("self", ours)):
        try:
            with open(f"/proc/{where}/timens_offsets", encoding="ascii") as file:
                for name, seconds, nanoseconds in _OFFSET.findall(file.read()):
                    into[name] = int(seconds) * _NS + int(nanoseconds)
        except FileNotFoundError:
            pass  # no time namespaces in this kernel
    return (
        time.clock_gettime_ns(time.CLOCK_MONOTONIC) - ours["monotonic"] + offsets["monotonic"],
        time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ours["boottime"] + offsets["boottime"],
    )


def time_offsets(monotonic_ns: int, boottime_ns: int) -> bytes:
    """Return what to write to /proc/PID/timens_offsets so that the clocks go on from there."""
    now = clocks(os.getpid())
    lines = []
    for name, wanted, is_now in (
        ("monotonic", monotonic_ns, now[0]),
        ("boottime", boottime_ns, now[1]),
    ):
        seconds, nanoseconds = divmod(wanted - is_now, _NS)
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
    ours = os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        theirs = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            HERE.call(SYS.SETNS, theirs, _FLAGS[kind])
        finally:
            os.close(theirs)
        try:
            yield
        finally:
            HERE.call(SYS.SETNS, ours, _FLAGS[kind])
    finally:
        os.close(ours)


def hostname(pid: int) -> bytes:
    """Return the host name that a process sees."""
    with inside(pid, "uts"):
        return os.fsencode(os.uname().nodename)


def domainname(pid: int) -> bytes:
    """Return the NIS domain name that a process sees."""
    names = bytearray(6 * 65)  # struct new_utsname
    with inside(pid, "uts"):
        HERE.call(SYS.UNAME, names)
    return bytes(names[5 * 65 :]).split(b"\0")[0]


def set_domainname(pid: int, name: bytes) -> None:
    """Set the NIS domain name in a process's uts namespace."""
    with inside(pid, "uts"):
        HERE.call(SYS.SETDOMAINNAME, name, len(name))


def set_hostname(pid: int, name: bytes) -> None:
    """Set the host name in a process's uts namespace."""
    with inside(pid, "uts"):
        HERE.call(SYS.SETHOSTNAME, name, len(name))
