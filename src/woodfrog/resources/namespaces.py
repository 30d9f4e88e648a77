"""What belongs to the container's namespaces: clocks, host name, System V objects."""

import os
import re
import time

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE

_CLONE_NEWUTS = 0x04000000
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


class _UtsNamespace:
    """Another process's uts namespace, for as long as the `with` lasts."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def __enter__(self) -> None:
        self._ours = os.open("/proc/thread-self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        theirs = os.open(f"/proc/{self._pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        try:
            HERE.call(SYS.SETNS, theirs, _CLONE_NEWUTS)
        finally:
            os.close(theirs)

    def __exit__(self, *_: object) -> None:
        HERE.call(SYS.SETNS, self._ours, _CLONE_NEWUTS)
        os.close(self._ours)


def hostname(pid: int) -> bytes:
    """Return the host name that a process sees."""
    with _UtsNamespace(pid):
        return os.fsencode(os.uname().nodename)


def domainname(pid: int) -> bytes:
    """Return the NIS domain name that a process sees."""
    names = bytearray(6 * 65)  # struct new_utsname
    with _UtsNamespace(pid):
        HERE.call(SYS.UNAME, names)
    return bytes(names[5 * 65 :]).split(b"\0")[0]


def set_domainname(pid: int, name: bytes) -> None:
    """Set the NIS domain name in a process's uts namespace."""
    with _UtsNamespace(pid):
        HERE.call(SYS.SETDOMAINNAME, name, len(name))


def set_hostname(pid: int, name: bytes) -> None:
    """Set the host name in a process's uts namespace."""
    with _UtsNamespace(pid):
        HERE.call(SYS.SETHOSTNAME, name, len(name))


def refuse_contents(pid: int, kind: str) -> None:
    """Refuse System V objects and message queues in a container's own ipc namespace."""
    if os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}"):
        return
    for name, what in (("shm", "shared memory"), ("sem", "semaphores"), ("msg", "message queues")):
        try:
            with open(f"/proc/{pid}/root/proc/sysvipc/{name}", encoding="ascii") as file:
                lines = file.readlines()
        except OSError:
            continue
        if len(lines) > 1:
            raise UnsupportedResource(
                f"has System V {what}, which cannot be saved yet",
                hint="remove them with ipcrm, or use POSIX shared memory",
            )
