"""The nested namespaces of an image: the root stub makes them, processes and threads join them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from woodfrog.engine import passing
from woodfrog.engine.making_users import Users
from woodfrog.errors import ImageError, while_
from woodfrog.kernel import mounts as m
from woodfrog.kernel import namespaces as ns
from woodfrog.kernel import syscalls, user_namespace
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.procfs.status import read_status
from woodfrog.remote import descriptors
from woodfrog.remote.stub import Stub
from woodfrog.resources import namespaces
from woodfrog.resources.membership import FUTURE_PID, FUTURE_TIME, Membership

if TYPE_CHECKING:
    from woodfrog.engine.mounting import Mounting
    from woodfrog.resources.mount_tree.records import Base, MountTree
    from woodfrog.resources.nested import AnyNamespace, MountNamespace, PidNamespace, TimeNamespace

# A mount namespace comes last: to enter it changes the directory.
_ORDER = ("cgroup", "ipc", "uts", "net", "mnt")
_OWN = 0


class MadeNamespaces:
    """Nested namespaces that stand, by descriptors of ours; `undo` closes them.

    `mounting` makes the mounts of those that have some. `cgroups` are the directories of the
    container's own groups by the names of their hierarchies.
    """

    def __init__(
        self,
        root: Stub,
        mounting: Mounting | None,
        cgroups: Mapping[str, str],
        undo: ExitStack,
    ) -> None:
        self._root = root
        self._mounting = mounting
        self._cgroups = cgroups
        self._undo = undo
        self._unborn: set[int] = set()
        self._ended: list[PidNamespace] = []
        self.users = Users(root, self._go, self.join)
        self._later: dict[int, TimeNamespace] = {}
        # By name and id; 0: the container's own.
        self._ours: dict[tuple[str, int], int] = {}

    def make(self, records: Iterable[AnyNamespace]) -> None:
        """Make namespaces; the root stub is in none of them afterwards.

        Those of mounts come after what may be bound in them, and after the container's own mounts.

        Those of time come only when all processes stand: they may belong to a process's future
        children, which nobody but that process can make so. Pid namespaces come with their first
        processes.
        """
        for record in records:
            from woodfrog.resources.nested import PidNamespace, TimeNamespace

            if isinstance(record, TimeNamespace):
                self._later[record.id] = record
                continue
            if isinstance(record, PidNamespace):
                self.users.pid_owners[record.id] = record.owner
                if record.is_unborn:
                    self._unborn.add(record.id)
                if record.has_ended:
                    self._ended.append(record)
                continue
            with while_(f"making a namespace ({record.name})"):
                self._know(record.name, _OWN, f"/proc/{self._root.pid}/ns/{record.name}")
                self._make(record)

    def _make(self, record: AnyNamespace) -> None:
        from woodfrog.resources.nested import (
            IpcNamespace,
            MountNamespace,
            UserNamespace,
            UtsNamespace,
        )

        if isinstance(record, MountNamespace):
            self._make_mounts(record)
        if isinstance(record, MountNamespace) and not record.owner:
            self._know("mnt", record.id, f"/proc/{self._root.pid}/ns/mnt")
            self._go(self._root, self._root, {"mnt": _OWN})
            return
        with self._maker(record) as maker:
            program = maker.program()
            if isinstance(record, UserNamespace):
                self.users.become_maker(program, record)
            ns.unshare(program, ns.FLAGS[record.name])
            if isinstance(record, UtsNamespace):
                program.call(SYS.SETHOSTNAME, record.hostname, len(record.hostname))
                program.call(SYS.SETDOMAINNAME, record.domainname, len(record.domainname))
            maker.run(program)
            if isinstance(record, UserNamespace):
                texts = self.users.know(record)
                above: int | None = self._ours["user", record.owner]
                if not record.owner and namespaces.is_ours(self._root.pid, "user"):
                    above = None
                user_namespace.write_maps(
                    maker.pid, *texts, setgroups=record.setgroups, above=above
                )
            self._know(record.name, record.id, f"/proc/{maker.pid}/ns/{record.name}")
        if isinstance(record, IpcNamespace) and record.settings:
            from woodfrog.resources import sysctls

            with namespaces.within(self._ours["ipc", record.id], "ipc"):
                sysctls.change_here(record.settings)
        if record.name == "mnt" or (not record.owner and record.name != "user"):
            self._go(self._root, self._root, {record.name: _OWN})

    def _make_mounts(self, record: MountNamespace) -> None:
        """Make a mount namespace, in which the root stub then is.

        For a user namespace it is made like others; what belongs to that is a copy of it, in which
        no mount can be taken away from what it covers, nor lose its flags.
        """
        if record.origin:
            self._go(self._root, self._root, {"mnt": record.origin})
        program = self._root.program()
        ns.unshare(program, ns.CLONE_NEWNS)
        if record.tree:
            # What is made there must not spread to where it was copied from.
            m.mount(program, None, "/", None, m.MS_REC | m.MS_SLAVE)
        self._root.run(program)
        if record.tree:
            self._mount(record.tree, owned=bool(record.owner))

    @contextmanager
    def _maker(self, record: AnyNamespace) -> Iterator[Stub]:
        """Give who makes a namespace: it belongs to the user namespace of its maker.

        There is no way back from that, so others than the root stub do it, and end.
        """
        from woodfrog.resources import cgroups
        from woodfrog.resources.nested import CgroupNamespace

        roots = record.roots if isinstance(record, CgroupNamespace) else []
        if not record.owner and record.name != "user" and not roots:
            yield self._root
            return
        maker = passing.make(self._root, [])
        cgroups.join(roots, self._cgroups, maker.pid)
        if record.owner:
            self._go(maker, maker, {"user": record.owner})
        yield maker
        self._end(maker)

    def set_clocks(self, processes: Iterable[tuple[Stub, Membership]]) -> None:
        """Make the namespaces of time, and have processes join them; all are of one thread still.

        One that isn't in the namespace of its future children must have made that itself.
        """
        if not self._later:
            return
        processes = list(processes)
        root = self._root
        self._know("time", _OWN, f"/proc/{root.pid}/ns/time")
        of_makers = {wanted[FUTURE_TIME] for _, wanted in processes if FUTURE_TIME in wanted}
        for number in self._later.keys() - of_makers:
            self._make_clocks(self._later.pop(number), root)
            self._go(root, root, {"time": _OWN})
        while processes:
            ready = [one for one in processes if one[1].get("time", _OWN) not in self._later]
            if not ready:
                raise ImageError("the image has time namespaces that none could have made first")
            for stub, wanted in ready:
                self._join_clocks(stub, wanted)
            processes = [one for one in processes if one not in ready]

    def _join_clocks(self, stub: Stub, wanted: Membership) -> None:
        """Have a process join its time namespace, and then make that of its future children.

        Whoever joins one has its children in it, too (timens_install() of the kernel).
        """
        there = self._ours["time", wanted.get("time", _OWN)]
        if os.stat(f"/proc/{stub.pid}/ns/time").st_ino != os.fstat(there).st_ino:
            self._go(stub, stub, {"time": wanted.get("time", _OWN)})
        if FUTURE_TIME in wanted:
            self._make_clocks(self._later.pop(wanted[FUTURE_TIME]), stub)

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

    def give_bound(self, base: Base) -> int:
        """Return the root stub's descriptor of a namespace that is bound to a file."""
        ours = self.descriptor(base.namespace, base.namespace_id)
        return descriptors.give(self._root, [ours])[0]

    def know_pid_namespace(self, number: int, stub: Stub) -> None:
        """Keep the pid namespace that a stub is in, which may be the container's own."""
        self._know("pid", number, f"/proc/{stub.pid}/ns/pid")

    def mount_late(self, records: Iterable[AnyNamespace]) -> None:
        """Make the mounts that need processes: procs of nested pid namespaces."""
        for record in records:
            from woodfrog.resources.nested import MountNamespace

            if isinstance(record, MountNamespace) and record.late:
                self._mount_late(record.id, record.late, owned=bool(record.owner))

    def _mount_late(self, number: int, tree: MountTree, *, owned: bool) -> None:
        # Not made there: in a user namespace's mounts all of proc must be seen already.
        procs = {id(base): self._new_proc(base) for base in tree.bases if base.pid_namespace}
        with self.visited(self._root, "mnt", number):
            self._mount(tree, lambda base: procs[id(base)], owned=owned)

    def _mount(
        self, tree: MountTree, proc: Callable[[Base], int] | None = None, *, owned: bool
    ) -> None:
        assert self._mounting is not None
        self._mounting.make(tree, self.give_bound, proc, owned=owned)

    def _new_proc(self, base: Base) -> int:
        """Return the root stub's descriptor of a proc that shows a nested pid namespace.

        That is the one of who makes it: a passing process there, with the container's own rights.
        """
        settings = [(b"source", base.source)]
        for option in filter(None, base.options.split(b",")):
            key, _, value = option.partition(b"=")
            settings.append((key, value))
        self.know_pid_namespace(_OWN, self._root)
        with self.children_in(self._root, base.pid_namespace, _OWN):
            maker = passing.make(self._root, [])
        from woodfrog.resources.mount_tree.making import OneByOne

        made = m.new_mount(OneByOne(maker), "proc", 0, settings=settings)
        ours = descriptors.fetch(maker.pid, made)
        try:
            self._end(maker)
            return descriptors.give(self._root, [ours])[0]
        finally:
            os.close(ours)

    def _end(self, maker: Stub) -> None:
        """Have a passing child of the root stub end."""
        level = len(read_status(f"/proc/{self._root.pid}")["NSpid"].split()) - 1
        passing.end(
            self._root, maker, int(read_status(f"/proc/{maker.pid}")["NSpid"].split()[level])
        )

    def make_ended(self) -> None:
        """Make the pid namespaces that have ended: by a first process that ends at once."""
        waiting = self._ended
        self.know_pid_namespace(_OWN, self._root)
        while waiting:
            for record in [one for one in waiting if ("pid", one.parent) in self._ours]:
                waiting.remove(record)
                with self.children_in(self._root, record.parent, _OWN):
                    first = passing.make(self._root, [], ns.CLONE_NEWPID)
                self.know_pid_namespace(record.id, first)
                self._end(first)

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
        for name, theirs in zip(where, descriptors.give(leader, ours), strict=True):
            ns.setns(program, theirs, ns.FLAGS[name])
            syscalls.close(program, theirs)
        task.run(program)


def _differing(wanted: Membership, present: Membership) -> Membership:
    to = {name: wanted.get(name, _OWN) for name in _ORDER}
    return {name: number for name, number in to.items() if number != present.get(name, _OWN)}
