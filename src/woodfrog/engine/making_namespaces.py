"""The nested namespaces of an image: the root stub makes them, processes and threads join them."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from woodfrog.engine import root_stub
from woodfrog.errors import while_
from woodfrog.kernel import mounts as m
from woodfrog.kernel import namespaces as ns
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote import descriptors
from woodfrog.remote.stub import Stub
from woodfrog.resources import namespaces, sysctls
from woodfrog.resources.mount_tree.making import OneByOne
from woodfrog.resources.mount_tree.records import Base, MountTree
from woodfrog.resources.nested import (
    FUTURE_PID,
    FUTURE_TIME,
    AnyNamespace,
    IpcNamespace,
    Membership,
    MountNamespace,
    PidNamespace,
    TimeNamespace,
    UtsNamespace,
)

# A mount namespace comes last: to enter it changes the directory.
_ORDER = ("cgroup", "ipc", "uts", "net", "mnt")
_OWN = 0


class MadeNamespaces:
    """Nested namespaces that stand, by descriptors of ours; `undo` closes them.

    `mount` makes mounts in the namespace that the root stub is in; see mount_tree.making.restore.
    """

    def __init__(
        self,
        root: Stub,
        mount: Callable[[MountTree, Callable[[Base], int]], None],
        undo: ExitStack,
    ) -> None:
        self._root = root
        self._mount = mount
        self._undo = undo
        self._unborn: set[int] = set()
        self._firsts: dict[int, Stub] = {}
        self._later: dict[int, TimeNamespace] = {}
        # By name and id; 0: the container's own.
        self._ours: dict[tuple[str, int], int] = {}

    def make(self, records: Iterable[AnyNamespace]) -> None:
        """Make namespaces; the root stub is in none of them afterwards.

        Those of time come only when all processes stand: they may belong to a process's future
        children, which nobody but that process can make so. Pid namespaces come with their first
        processes.
        """
        for record in records:
            if isinstance(record, TimeNamespace):
                self._later[record.id] = record
                continue
            if isinstance(record, PidNamespace):
                if record.is_unborn:
                    self._unborn.add(record.id)
                continue
            with while_(f"making a namespace ({record.name})"):
                self._know(record.name, _OWN, f"/proc/{self._root.pid}/ns/{record.name}")
                self._make(record)

    def _make(self, record: AnyNamespace) -> None:
        if isinstance(record, MountNamespace) and record.origin:
            self._go(self._root, self._root, {"mnt": record.origin})
        program = self._root.program()
        ns.unshare(program, ns.FLAGS[record.name])
        if isinstance(record, UtsNamespace):
            program.call(SYS.SETHOSTNAME, record.hostname, len(record.hostname))
            program.call(SYS.SETDOMAINNAME, record.domainname, len(record.domainname))
        self._root.run(program)
        if isinstance(record, MountNamespace) and record.tree:
            self._mount(record.tree, self._new_proc)
        self._know(record.name, record.id, f"/proc/{self._root.pid}/ns/{record.name}")
        if isinstance(record, IpcNamespace) and record.settings:
            with namespaces.within(self._ours["ipc", record.id], "ipc"):
                sysctls.change_here(record.settings)
        self._go(self._root, self._root, {record.name: _OWN})

    def set_clocks(self, processes: Iterable[tuple[Stub, Membership]]) -> None:
        """Make the namespaces of time, and have processes join them; all are of one thread still.

        One that isn't in the namespace of its future children must have made that itself.
        """
        if not self._later:
            return
        processes = list(processes)
        for stub, wanted in processes:
            if FUTURE_TIME in wanted:
                self._make_clocks(self._later.pop(wanted[FUTURE_TIME]), stub)
        root = self._root
        self._know("time", _OWN, f"/proc/{root.pid}/ns/time")
        for record in self._later.values():
            self._make_clocks(record, root)
            self._go(root, root, {"time": _OWN})
        for stub, wanted in processes:
            now = os.stat(f"/proc/{stub.pid}/ns/time").st_ino
            there = self._ours["time", wanted.get("time", _OWN)]
            if now != os.fstat(there).st_ino:
                self._go(stub, stub, {"time": wanted.get("time", _OWN)})

    def _make_clocks(self, record: TimeNamespace, maker: Stub) -> None:
        with while_("making a namespace (time)"):
            program = maker.program()
            ns.unshare(program, ns.CLONE_NEWTIME)
            maker.run(program)
            ahead = namespaces.own_offsets(self._root.pid)
            offsets = ahead[0] + record.monotonic_ns, ahead[1] + record.boottime_ns
            with open(f"/proc/{maker.pid}/timens_offsets", "wb", buffering=0) as file:
                file.write(namespaces.offsets_text(*offsets))
            self._know("time", record.id, f"/proc/{maker.pid}/ns/{FUTURE_TIME}")

    def _know(self, name: str, number: int, link: str) -> None:
        if (name, number) not in self._ours:
            ours = self._ours[name, number] = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
            self._undo.callback(os.close, ours)

    def descriptor(self, name: str, number: int) -> int:
        """Return our descriptor of a namespace; 0 is the container's own."""
        if number == _OWN:
            self._know(name, _OWN, f"/proc/{self._root.pid}/ns/{name}")
        return self._ours[name, number]

    def know_pid_namespace(self, number: int, stub: Stub) -> None:
        """Keep the pid namespace that a stub is in, which may be the container's own."""
        self._know("pid", number, f"/proc/{stub.pid}/ns/pid")

    def begin_pid_namespace(self, number: int, first: Stub) -> None:
        """Keep a pid namespace whose first process has just been born."""
        self.know_pid_namespace(number, first)
        self._firsts[number] = first

    def mount_late(self, records: Iterable[AnyNamespace]) -> None:
        """Make the mounts that need processes: procs of nested pid namespaces."""
        for record in records:
            if isinstance(record, MountNamespace) and record.late:
                with self.visited(self._root, "mnt", record.id):
                    self._mount(record.late, self._new_proc)

    def _new_proc(self, base: Base) -> int:
        """Return the root stub's descriptor of a proc that the first process of a namespace made.

        It shows the pid namespace of who makes it.
        """
        first = self._firsts[base.pid_namespace]
        settings = [(b"source", base.source)]
        for option in filter(None, base.options.split(b",")):
            key, _, value = option.partition(b"=")
            settings.append((key, value))
        made = m.new_mount(OneByOne(first), "proc", 0, settings=settings)
        ours = descriptors.fetch(first.pid, made)
        try:
            program = first.program()
            syscalls.close(program, made)
            first.run(program)
            return root_stub.send(self._root, [ours])[0]
        finally:
            os.close(ours)

    def has_pid_namespace(self, number: int) -> bool:
        """Tell whether a pid namespace has its first process already."""
        return ("pid", number) in self._ours

    @contextmanager
    def children_in(self, stub: Stub, number: int, own: int) -> Iterator[None]:
        """Have a stub's children be in another pid namespace for as long, not in its own."""
        self._go(stub, stub, {"pid": number})
        yield
        self._go(stub, stub, {"pid": own})

    def set_future(self, leader: Stub, task: Stub, membership: Membership) -> None:
        """Have a task's future children be in the pid namespace where they were to be."""
        number = membership.get(FUTURE_PID)
        if number is None:
            return
        if number in self._unborn:
            program = task.program()
            ns.unshare(program, ns.CLONE_NEWPID)
            task.run(program)
        else:
            self._go(leader, task, {"pid": number})

    def link(self, name: str, number: int) -> str:
        """Return a path that leads to a nested namespace."""
        return f"/proc/self/fd/{self._ours[name, number]}"

    @contextmanager
    def visited(self, stub: Stub, name: str, number: int) -> Iterator[None]:
        """Have a stub be in a namespace for as long, and then in the container's own again."""
        if number == _OWN:
            yield
            return
        self._go(stub, stub, {name: number})
        yield
        self._go(stub, stub, {name: _OWN})

    def join(self, stub: Stub, wanted: Membership, born_in: Membership) -> None:
        """Have a process leave the namespaces that it was born in, for those that it was in."""
        self._go(stub, stub, _differing(wanted, born_in))

    def join_by_thread(
        self, leader: Stub, thread: Stub, wanted: Membership, born_in: Membership
    ) -> None:
        """Have a further thread do that; it may be in other ones than its process."""
        where = _differing(wanted, born_in)
        if "mnt" in where:
            program = thread.program()
            ns.unshare(program, ns.CLONE_FS)
            thread.run(program)
        self._go(leader, thread, where)

    def _go(self, leader: Stub, task: Stub, where: Membership) -> None:
        """Have a task enter namespaces, by descriptors that its process gets for that."""
        if not where:
            return
        ours = [self._ours[name, number] for name, number in where.items()]
        program = task.program()
        for name, theirs in zip(where, root_stub.send(leader, ours), strict=True):
            ns.setns(program, theirs, ns.FLAGS[name])
            syscalls.close(program, theirs)
        task.run(program)


def _differing(wanted: Membership, present: Membership) -> Membership:
    to = {name: wanted.get(name, _OWN) for name in _ORDER}
    return {name: number for name, number in to.items() if number != present.get(name, _OWN)}
