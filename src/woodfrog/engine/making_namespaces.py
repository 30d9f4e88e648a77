"""The nested namespaces of an image: the root stub makes them, processes and threads join them."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import msgspec

from woodfrog.engine import kinship, passing, root_stub
from woodfrog.engine.pids import Member
from woodfrog.errors import UnsupportedResource, while_
from woodfrog.kernel import mounts as m
from woodfrog.kernel import namespaces as ns
from woodfrog.kernel import syscalls, user_namespace
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.procfs.id_maps import IdMap
from woodfrog.kernel.procfs.status import read_status
from woodfrog.remote import descriptors
from woodfrog.remote.program import Program
from woodfrog.remote.stub import Stub, StubError, await_birth
from woodfrog.resources import credentials, namespaces, sysctls
from woodfrog.resources.credentials import Credentials
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
    UserNamespace,
    UtsNamespace,
)
from woodfrog.resources.process import Process
from woodfrog.resources.threads import Thread

# A mount namespace comes last: to enter it changes the directory.
_ORDER = ("cgroup", "ipc", "uts", "net", "mnt")
_OWN = 0
_USERS, _GROUPS = "user_map", "group_map"


class MadeNamespaces:
    """Nested namespaces that stand, by descriptors of ours; `undo` closes them.

    `mount` makes mounts in the namespace that the root stub is in; see mount_tree.making.restore.
    With True, they are for a user namespace, whose processes need nobody's leave.
    """

    def __init__(
        self,
        root: Stub,
        mount: Callable[[MountTree, Callable[[Base], int] | None, bool], None],
        undo: ExitStack,
    ) -> None:
        self._root = root
        self._mount = mount
        self._undo = undo
        self._unborn: set[int] = set()
        self._users: dict[int, UserNamespace] = {}
        self._pid_owners: dict[int, int] = {}
        self._born: dict[int, Credentials] = {}
        self._born_in: dict[int, int] = {}
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
                self._pid_owners[record.id] = record.owner
                if record.is_unborn:
                    self._unborn.add(record.id)
                continue
            with while_(f"making a namespace ({record.name})"):
                self._know(record.name, _OWN, f"/proc/{self._root.pid}/ns/{record.name}")
                self._make(record)

    def _make(self, record: AnyNamespace) -> None:
        if isinstance(record, MountNamespace):
            self._make_mounts(record)
        if isinstance(record, MountNamespace) and not record.owner:
            self._know("mnt", record.id, f"/proc/{self._root.pid}/ns/mnt")
            self._go(self._root, self._root, {"mnt": _OWN})
            return
        with self._maker(record) as maker:
            program = maker.program()
            if isinstance(record, UserNamespace):
                self._become_maker(program, record)
            ns.unshare(program, ns.FLAGS[record.name])
            if isinstance(record, UtsNamespace):
                program.call(SYS.SETHOSTNAME, record.hostname, len(record.hostname))
                program.call(SYS.SETDOMAINNAME, record.domainname, len(record.domainname))
            maker.run(program)
            if isinstance(record, UserNamespace):
                self._users[record.id] = record
                texts = [self._map_text(record.owner, record, kind) for kind in (_USERS, _GROUPS)]
                above: int | None = self._ours["user", record.owner]
                if not record.owner and namespaces.is_ours(self._root.pid, "user"):
                    above = None
                user_namespace.write_maps(
                    maker.pid, *texts, setgroups=record.setgroups, above=above
                )
            self._know(record.name, record.id, f"/proc/{maker.pid}/ns/{record.name}")
        if isinstance(record, IpcNamespace) and record.settings:
            with namespaces.within(self._ours["ipc", record.id], "ipc"):
                sysctls.change_here(record.settings)
        if record.name == "mnt" or (not record.owner and record.name != "user"):
            self._go(self._root, self._root, {record.name: _OWN})

    def _become_maker(self, program: Program, record: UserNamespace) -> None:
        """Be the user who made a user namespace; all ids must be some in the one above."""
        uid = self._id_in(record.owner, record.uid)
        if record.owner and self._users[record.owner].group_map:
            program.call(SYS.SETRESGID, -1, self._users[record.owner].group_map[0][0], -1)
        if uid is not None and (uid or record.owner):
            program.call(SYS.SETRESUID, -1, uid, -1)

    def _make_mounts(self, record: MountNamespace) -> None:
        """Make a mount namespace, in which the root stub then is.

        For a user namespace it is made like others; what belongs to that is a copy of it, in which
        no mount can be taken away from what it covers, nor lose its flags.
        """
        if record.origin:
            self._go(self._root, self._root, {"mnt": record.origin})
        program = self._root.program()
        ns.unshare(program, ns.CLONE_NEWNS)
        self._root.run(program)
        if record.tree:
            self._mount(record.tree, None, bool(record.owner))

    @contextmanager
    def _maker(self, record: AnyNamespace) -> Iterator[Stub]:
        """Give who makes a namespace: it belongs to the user namespace of its maker.

        There is no way back from that, so others than the root stub do it, and end.
        """
        if not record.owner and record.name != "user":
            yield self._root
            return
        maker = passing.make(self._root, [])
        if record.owner:
            self._go(maker, maker, {"user": record.owner})
        yield maker
        self._end(maker)

    def _map_text(self, owner: int, record: UserNamespace, kind: str) -> bytes:
        """Return a map as the kernel takes it: with ids of the user namespace above."""
        found = IdMap(list(getattr(record, kind)))
        if owner:
            found = found.seen_from(IdMap(list(getattr(self._users[owner], kind))))
        return found.text

    def _id_in(self, namespace: int, number: int, kind: str = _USERS) -> int | None:
        """Return what an id of the container is in a nested user namespace, None: nothing."""
        if not namespace:
            return number
        return IdMap(list(getattr(self._users[namespace], kind))).inside(number)

    def enter_user_namespace(self, stub: Stub, record: Process, permitted: int) -> None:
        """Have a process of one thread be who it was, and go to the user namespace where it was.

        It has all rights there, until it gets those that it had.
        """
        number = record.namespaces.get("user", _OWN)
        now = self._born_in.get(record.pid, _OWN)
        if number == now:
            return
        program = stub.program()
        ids = self.ids_to_take(record, record.threads[0], now)
        if ids:
            rights = credentials.permitted_set(stub.pid) if now else permitted
            credentials.leave_root(program, ids, rights)
        with while_(f"having process {record.pid} enter its user namespace"):
            stub.run(program)
            self._go(stub, stub, {"user": number})

    def ids_to_take(
        self, record: Process, thread: Thread, number: int | None = None
    ) -> Credentials | None:
        """Return the credentials whose ids a thread has to take where it is; None: it has them.

        `number` is the user namespace where it is, if not where it is to be.
        """
        before = self._born.get(record.pid)
        if number is None:
            number = record.namespaces.get("user", _OWN)
            if number != self._born_in.get(record.pid, _OWN):
                before = record.threads[0].credentials  # it had to take them to come here
        own, first = thread.credentials, before
        if not number or first is None:
            return own
        if (own.uids, own.gids, own.groups) == (first.uids, first.gids, first.groups):
            return None
        uids = [self._id_in(number, one) for one in own.uids]
        gids = [self._id_in(number, one, _GROUPS) for one in (*own.gids, *own.groups)]
        if None in (*uids, *gids):
            raise UnsupportedResource(
                f"thread {thread.tid} has an id that its user namespace does not have"
            )
        return msgspec.structs.replace(own, uids=tuple(uids), gids=tuple(gids[:4]), groups=gids[4:])

    def make_threads(self, maker: Stub, record: Process, flags: int) -> list[Stub]:
        """Clone the further threads of a process.

        Who is in a nested user namespace may not choose ids in the container's pid namespace: the
        root stub does, by saying which was the last one.
        """
        maker.born.clear()
        if not record.namespaces.get("user"):
            program = maker.program()
            for thread in record.threads[1:]:
                syscalls.clone3(program, flags, 0, thread.ids)
            maker.run(program)
            return [_taken(maker, born) for born in maker.born]
        for thread in record.threads[1:]:
            self.bear(maker, flags, 0, thread.ids)
        return [_taken(maker, born) for born in maker.born]

    def bear(self, maker: Stub, flags: int, signal: int, ids: Sequence[int]) -> None:
        """Have who is in a nested user namespace clone, but choose only the inner ids itself."""
        self._say_last_id(ids[0] - 1)
        program = maker.program()
        syscalls.clone3(program, flags, signal, ids[1:])
        maker.run(program)
        self.check_id(maker.born[-1], ids)

    def check_id(self, born: int, ids: Sequence[int]) -> None:
        """Check that a newborn task has the ids that it was to have."""
        found = [int(word) for word in read_status(f"/proc/{born}")["NSpid"].split()]
        if found[-len(ids) :] != list(ids):
            raise StubError(f"task {ids[0]} came to be as {found[-len(ids)]}")

    def bear_first(
        self, maker: Stub, spare: Sequence[int], signal: int, child: Member, born_in: Membership
    ) -> int:
        """Have the first process of a pid namespace born that belongs to a user namespace.

        It is made there by a passing sibling. Returns its id as we see it.
        """
        owner = self.owner_of(child.pid_namespace)
        program = maker.program()
        syscalls.clone3(program, 0, signal, spare)
        maker.run(program)
        sibling = maker.born.pop()
        await_birth(sibling)
        stub = Stub(sibling, maker.base, maker.size)
        wanted = child.namespaces if isinstance(child, Process) else born_in
        self.join(stub, wanted, born_in)
        if isinstance(child, Process):
            permitted = credentials.permitted_set(stub.pid)
            program = stub.program()
            credentials.leave_root(program, child.threads[0].credentials, permitted)
            stub.run(program)
            self.note_birth(child, owner, child.threads[0].credentials)
        self._go(stub, stub, {"user": owner})
        program = stub.program()
        ns.unshare(program, ns.CLONE_NEWPID)
        stub.run(program)
        self._say_last_id(child.pid - 1)
        program = stub.program()
        syscalls.clone3(program, kinship.CLONE_PARENT, 0, [1])
        stub.run(program)
        (born,) = stub.born
        self.check_id(born, child.ids)
        passing.end(maker, stub, spare[-1])
        return born

    def owner_of(self, pid_namespace: int) -> int:
        """Return the id of the user namespace that a pid namespace belongs to."""
        return self._pid_owners.get(pid_namespace, _OWN)

    def note_birth(self, child: Process, user_namespace: int, ids: Credentials) -> None:
        """Note that a process has been born in a nested user namespace, with these ids."""
        self._born[child.pid] = ids
        self._born_in[child.pid] = user_namespace

    def born_in(self, pid: int) -> int:
        """Return the nested user namespace that a process was born in."""
        return self._born_in[pid]

    def born_ids(self, pid: int) -> Credentials | None:
        """Return the ids of a process that was born in a nested user namespace."""
        return self._born.get(pid)

    def _say_last_id(self, number: int) -> None:
        ours = os.open("/proc/sys/kernel/ns_last_pid", os.O_WRONLY | os.O_CLOEXEC)
        try:
            (theirs,) = root_stub.send(self._root, [ours])
        finally:
            os.close(ours)
        program = self._root.program()
        text = str(number).encode()
        program.expect(program.call(SYS.WRITE, theirs, text, len(text)), len(text))
        syscalls.close(program, theirs)
        self._root.run(program)

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

    def mount_late(self, records: Iterable[AnyNamespace]) -> None:
        """Make the mounts that need processes: procs of nested pid namespaces."""
        for record in records:
            if isinstance(record, MountNamespace) and record.late:
                self._mount_late(record.id, record.late, owned=bool(record.owner))

    def _mount_late(self, number: int, tree: MountTree, *, owned: bool) -> None:
        # Not made there: in a user namespace's mounts all of proc must be seen already.
        procs = {id(base): self._new_proc(base) for base in tree.bases if base.pid_namespace}
        with self.visited(self._root, "mnt", number):
            self._mount(tree, lambda base: procs[id(base)], owned)

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
        made = m.new_mount(OneByOne(maker), "proc", 0, settings=settings)
        ours = descriptors.fetch(maker.pid, made)
        try:
            self._end(maker)
            return root_stub.send(self._root, [ours])[0]
        finally:
            os.close(ours)

    def _end(self, maker: Stub) -> None:
        """Have a passing child of the root stub end."""
        level = len(read_status(f"/proc/{self._root.pid}")["NSpid"].split()) - 1
        passing.end(
            self._root, maker, int(read_status(f"/proc/{maker.pid}")["NSpid"].split()[level])
        )

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


def _taken(maker: Stub, born: int) -> Stub:
    """Take over a thread that its process has cloned."""
    await_birth(born)
    return maker.task(born)


def _differing(wanted: Membership, present: Membership) -> Membership:
    to = {name: wanted.get(name, _OWN) for name in _ORDER}
    return {name: number for name, number in to.items() if number != present.get(name, _OWN)}
