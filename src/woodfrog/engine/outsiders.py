"""Processes that `exec` brought into the container: they are made from outside.

A helper of ours joins the container's namespaces and cgroups, clones the process with its id, and
ends; then the process has the parent that `exec` leaves behind, and is turned into a stub like the
waiting init was.
"""

import ctypes
import os
from collections.abc import Iterable, Mapping, Sequence

from woodfrog.engine import root_stub, taking_files
from woodfrog.engine.kinship import CLONE_PARENT
from woodfrog.errors import WoodfrogError
from woodfrog.kernel import own_modules, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.namespaces import CLONE_NEWTIME, CLONE_NEWUSER
from woodfrog.kernel.procfs.mountinfo import read_mounts
from woodfrog.kernel.user_namespace import become_root
from woodfrog.remote import descriptors
from woodfrog.remote.stub import Stub
from woodfrog.remote.vdso import Vdso
from woodfrog.resources import namespaces
from woodfrog.resources.signals import SIGCHLD

# CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWPID | NEWNET
_NAMESPACES = 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000
_RIGHTS_AT_ONCE = 200


def make(
    init: int,
    pid: int,
    root: Stub,
    vdso: Vdso,
    files: Sequence[int],
    pages: int,
    bounds: Mapping[str, tuple[int, int]],
) -> Stub:
    """Make a stub with the id `pid` in the container of `init`, as a child of nobody inside.

    It gets the root stub's descriptors `files` and `pages`, under the same numbers. `bounds` are
    the limits that the container's config allows.
    """
    host_pid = clone_inside(init, pid)
    root_stub.raise_memory_limits(host_pid, bounds)
    store = descriptors.fetch(root.pid, pages)
    try:
        stub, got = root_stub.make(
            host_pid,
            root.base,
            root.size,
            vdso,
            high=max((pages, *files)) + 1,
            pages=store,
            time_offsets=None,
        )
    finally:
        os.close(store)
    program = stub.program()
    syscalls.close(program, got)
    stub.run(program)
    hand_over(root, stub, [*files, pages])
    return stub


def hand_over(root: Stub, stub: Stub, files: Sequence[int]) -> None:
    """Give another stub descriptors of the root stub's, under the same numbers."""
    ours = [descriptors.fetch(root.pid, fd) for fd in files]
    behind = max(files, default=-1) + 1
    try:
        pairs = list(zip(ours, files, strict=True))
        rings = [number for fd, number in pairs if taking_files.must_be_taken(fd)]
        if rings:
            taking_files.take(stub, root, 1, {number: [(number, False)] for number in rings})
        pairs = [pair for pair in pairs if pair[1] not in rings]
        for first in range(0, len(pairs), _RIGHTS_AT_ONCE):
            some, numbers = zip(*pairs[first : first + _RIGHTS_AT_ONCE], strict=True)
            received = descriptors.give(stub, list(some))
            program = stub.program()
            # First out of the way: they came where there was room, and that may be others' place.
            high = [syscalls.duplicate_above(program, got, behind) for got in received]
            for got in received:
                syscalls.close(program, got)
            for fd, wanted in zip(high, numbers, strict=True):
                syscalls.duplicate_to(program, fd, wanted, cloexec=False)
                syscalls.close(program, fd)
            stub.run(program)
    finally:
        for fd in ours:
            os.close(fd)


def clone_inside(init: int, pid: int, *, as_our_child: bool = False) -> int:
    """Return the host pid of a new process that waits in the container.

    It is `as_our_child`, whom nobody else needs to wait for, or a child of whoever gets orphans.
    Ours is there only for a while, and needs no room within the limit of tasks: it is moved in.
    """
    pidfd = HERE.call(SYS.PIDFD_OPEN, init, 0)
    time_namespace = os.open(f"/proc/{init}/ns/time", os.O_RDONLY | os.O_CLOEXEC)
    cgroups = [] if as_our_child else _cgroup_files(init).values()
    has_users = not namespaces.is_ours(init, "user")
    reader, writer = os.pipe()
    helper = os.fork()
    if helper == 0:
        flags = CLONE_PARENT if as_our_child else 0
        _become_helper(pidfd, time_namespace, cgroups, pid, flags, writer, has_users=has_users)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        answer = told.read().decode()
    os.waitpid(helper, 0)
    os.close(pidfd)
    os.close(time_namespace)
    if not answer.isdigit():
        raise WoodfrogError(f"cannot make process {pid} in the container: {answer}")
    if as_our_child:
        _move(int(answer), [path for name, path in _cgroup_files(init).items() if name != "pids"])
    return int(answer)


def take_out(pid: int) -> None:
    """Have a process of ours be in our own cgroups, and so in the way of no limit."""
    _move(pid, _cgroup_files("self").values())


def most_tasks(init: int) -> int | None:
    """Return how many tasks may be in the cgroup of a container's first process."""
    files = _cgroup_files(init)
    try:
        path = f"{os.path.dirname(files['pids'] if 'pids' in files else files[''])}/pids.max"
        with open(path, encoding="ascii") as file:
            most = file.read().strip()
    except (KeyError, FileNotFoundError):
        return None
    return int(most) if most.isdigit() else None


def _move(pid: int, cgroups: Iterable[str]) -> None:
    for path in cgroups:
        with open(path, "w", encoding="ascii") as file:
            file.write(str(pid))


def _become_helper(
    pidfd: int,
    time_namespace: int,
    cgroups: Iterable[str],
    pid: int,
    flags: int,
    writer: int,
    *,
    has_users: bool,
) -> None:
    """Join, clone, tell, and end. Never returns."""
    try:
        for path in cgroups:
            with open(path, "w", encoding="ascii") as file:
                file.write("0")
        own_modules.load_no_more()
        HERE.call(SYS.SETNS, time_namespace, CLONE_NEWTIME)
        HERE.call(SYS.SETNS, pidfd, _NAMESPACES | (CLONE_NEWUSER if has_users else 0))
        if has_users:
            become_root()
        ids = bytearray(pid.to_bytes(4, "little"))
        child = clone_with_id(ids, flags)
        if child == 0:
            os.close(writer)
            while True:
                HERE.call(SYS.PAUSE)
        os.write(writer, b"%d" % child)
    except BaseException as error:
        os.write(writer, str(error).encode())
    os._exit(0)


def clone_with_id(ids: bytearray, flags: int = 0) -> int:
    """Fork with set_tid (clone3(2)); returns the child's id as we see it, or 0 in the child."""
    # A sibling has its maker's exit signal.
    signal = 0 if flags & CLONE_PARENT else SIGCHLD
    address = ctypes.addressof((ctypes.c_char * len(ids)).from_buffer(ids))
    words = (flags, 0, 0, 0, signal, 0, 0, 0, address, 1, 0)
    arguments = b"".join(word.to_bytes(8, "little") for word in words)
    return HERE.call(SYS.CLONE3, arguments, len(arguments))


def _cgroup_files(process: int | str) -> dict[str, str]:
    """Return the cgroup.procs files of the cgroups that a process is in, by their controllers."""
    points: dict[str, str] = {}
    for mount in read_mounts("self"):
        point = os.fsdecode(mount.point)
        if mount.type == "cgroup2":
            points.setdefault("", point)
        elif mount.type == "cgroup":
            for name in mount.super_options.split(","):
                points.setdefault(name, point)
    found = {}
    with open(f"/proc/{process}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            point = points.get(controllers.split(",")[0], "")
            target = f"{point}{path}/cgroup.procs"
            if point and os.path.exists(target):
                found[controllers] = target
    return found
