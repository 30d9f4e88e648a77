"""Nested user namespaces: whose ids are which in them, how processes come there and are born there.

Who is in one has all rights there, and none outside. So what is to be done with the container's own
rights comes before, or is done by the root stub.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from woodfrog.engine import kinship, passing
from woodfrog.engine.pids import Member
from woodfrog.errors import UnsupportedResource, while_
from woodfrog.kernel import namespaces as ns
from woodfrog.kernel import ptrace, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.procfs.id_maps import IdMap
from woodfrog.kernel.procfs.status import read_status
from woodfrog.remote import descriptors
from woodfrog.remote.program import Program
from woodfrog.remote.stub import Stub, StubError, await_birth
from woodfrog.resources import credentials
from woodfrog.resources.credentials import Credentials
from woodfrog.resources.membership import Membership
from woodfrog.resources.process import Process
from woodfrog.resources.threads import Thread

if TYPE_CHECKING:
    from woodfrog.resources.nested import UserNamespace

_CLONE_PTRACE = 0x2000
_OWN = 0
_USERS, _GROUPS = "user_map", "group_map"


class Users:
    """The nested user namespaces of an image.

    `go` has a task of a process enter namespaces, `join` has a process leave those that it was born
    in for others.
    """

    def __init__(
        self,
        root: Stub,
        go: Callable[[Stub, Stub, Membership], None],
        join: Callable[[Stub, Membership, Membership], None],
    ) -> None:
        self._root = root
        self._go = go
        self._join = join
        self._known: dict[int, UserNamespace] = {}
        # The user namespaces that pid namespaces belong to.
        self.pid_owners: dict[int, int] = {}
        self._born: dict[int, Credentials] = {}
        self._born_in: dict[int, int] = {}

    def become_maker(self, program: Program, record: UserNamespace) -> None:
        """Be the user who made a user namespace; all ids must be some in the one above."""
        uid = self._id_in(record.owner, record.uid)
        if record.owner and self._known[record.owner].group_map:
            program.call(SYS.SETRESGID, -1, self._known[record.owner].group_map[0][0], -1)
        if uid is not None and (uid or record.owner):
            program.call(SYS.SETRESUID, -1, uid, -1)

    def know(self, record: UserNamespace) -> tuple[bytes, bytes]:
        """Know of a user namespace; returns its maps, of users and of groups, as they are set."""
        self._known[record.id] = record
        return self._map_text(record, _USERS), self._map_text(record, _GROUPS)

    def _map_text(self, record: UserNamespace, kind: str) -> bytes:
        """Return a map as the kernel takes it: with ids of the user namespace above."""
        owner = record.owner
        found = IdMap(list(getattr(record, kind)))
        if owner:
            found = found.seen_from(IdMap(list(getattr(self._known[owner], kind))))
        return found.text

    def _id_in(self, namespace: int, number: int, kind: str = _USERS) -> int | None:
        """Return what an id of the container is in a nested user namespace, None: nothing."""
        if not namespace:
            return number
        return IdMap(list(getattr(self._known[namespace], kind))).inside(number)

    def enter(self, stub: Stub, record: Process, permitted: int) -> None:
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

    def make_threads(self, maker: Stub, record: Process, flags: int, options: int) -> list[Stub]:
        """Clone the further threads of a process, which is held with these PTRACE_O_*.

        Who is in a nested user namespace may not choose ids in the container's pid namespace: the
        root stub does, by saying which was the last one.
        """
        if not record.namespaces.get("user"):
            return _cloned(maker, record.threads[1:], flags, options)
        maker.born.clear()
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
        found = _ids(born)
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
        self._join(stub, wanted, born_in)
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
        return self.pid_owners.get(pid_namespace, _OWN)

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
            (theirs,) = descriptors.give(self._root, [ours])
        finally:
            os.close(ours)
        program = self._root.program()
        text = str(number).encode()
        program.expect(program.call(SYS.WRITE, theirs, text, len(text)), len(text))
        syscalls.close(program, theirs)
        self._root.run(program)


def _cloned(maker: Stub, threads: Sequence[Thread], flags: int, options: int) -> list[Stub]:
    """Clone threads that are held from the start, without a stop of their maker for each."""
    if not threads:
        return []
    place = f"/proc/{maker.pid}/task"
    before = set(os.listdir(place))
    program = maker.program()
    for thread in threads:
        syscalls.clone3(program, flags | _CLONE_PTRACE, 0, thread.ids)
    ptrace.set_options(maker.pid, options & ~ptrace.O_TRACECLONE)
    maker.run(program)
    ptrace.set_options(maker.pid, options)
    born = sorted(int(name) for name in os.listdir(place) if name not in before)
    if len(born) != len(threads):
        raise StubError(f"process {maker.pid} has {len(born)} new threads, not {len(threads)}")
    if born[0] < maker.pid:
        # Our ids began anew: which is which only they tell. Otherwise they rise, and each thread
        # says later that it is the right one (threads.restore).
        place_of = {thread.ids[0]: place for place, thread in enumerate(threads)}
        depth = len(threads[0].ids)
        born.sort(key=lambda tid: place_of[_ids(tid)[-depth]])
    stubs = []
    for tid in born:
        stubs.append(_taken(maker, tid))
        ptrace.set_options(tid, options)
    return stubs


def _ids(task: int) -> list[int]:
    """Return the ids of a task, in our pid namespace and those below, outermost first."""
    return [int(word) for word in read_status(f"/proc/{task}")["NSpid"].split()]


def _taken(maker: Stub, born: int) -> Stub:
    """Take over a thread that its process has cloned."""
    await_birth(born)
    return maker.task(born)
