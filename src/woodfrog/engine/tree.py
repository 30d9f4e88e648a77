"""TREE: all processes, parents before children, with their sessions and groups."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import or_

from woodfrog.engine import kinship, terminals
from woodfrog.engine import passing as passing_processes
from woodfrog.engine.inheriting import Inheritance, Wish
from woodfrog.engine.keyring_members import KeyringMembers
from woodfrog.engine.kinship import How
from woodfrog.engine.making_namespaces import MadeNamespaces
from woodfrog.engine.pids import Member, group_ids, numbers_of, session_ids
from woodfrog.engine.plan import Plan
from woodfrog.errors import UnsupportedResource, while_
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.namespaces import CLONE_NEWPID
from woodfrog.remote.program import Program
from woodfrog.remote.stub import Stub, await_birth
from woodfrog.resources import process as process_module
from woodfrog.resources import signals
from woodfrog.resources.membership import Membership
from woodfrog.resources.process import Process


class Tree:
    """Builds the processes of a plan under the root stub. `stubs` has them by their own ids.

    `bring_in` makes a process whose parent is outside, by its id. With `inheritance` children share
    memory with their parents, as they did.
    """

    def __init__(
        self,
        plan: Plan,
        root: Stub,
        namespaces: MadeNamespaces,
        inheritance: Inheritance | None,
        bring_in: Callable[[int], Stub],
    ) -> None:
        self._make_outside = bring_in
        self._keyrings = KeyringMembers(plan.keyrings, root)
        self._namespaces = namespaces
        self._inheritance = inheritance
        self.stubs: dict[int, Stub] = {1: root}
        self._plan = plan
        members: list[Member] = [*plan.processes, *plan.zombies]
        self._members = {one.pid: one for one in members}
        # Sessions whose leader has ended: made once, by a process that ends again.
        self._orphans: list[Member] = []
        # Those that a process makes: its children, and siblings that share something with it.
        self._children: dict[int, list[Member]] = defaultdict(list)
        self._makers = kinship.makers(members)
        for one in self._members.values():
            if one.pid not in self._makers:
                continue
            maker = self._makers[one.pid]
            if maker.how is How.ORPHAN:
                self._orphans.append(one)
            else:
                self._children[maker.pid].append(one)
        used = {thread.tid for one in plan.processes for thread in one.threads}
        used |= set(self._members)
        used |= {one.session for one in self._members.values()}
        used |= {one.group for one in self._members.values()}
        # No task has one of these ids, whatever pid namespace it is in.
        used |= {number for one in self._members.values() for number in numbers_of(one)}
        self._spare_pid = max(used)
        # Those in another pid namespace than their makers' children otherwise, with their makers.
        self._strangers: list[tuple[Member, Member]] = []

    def build(self, program: Program) -> None:
        """Make all processes, then sort them into their groups, then let the zombies die.

        The first process runs `program` before it has children.
        """
        first = self._members[1]
        root = self.stubs[1]
        if isinstance(first, Process):
            process_module.restore_attributes(program, first)
        if first.session == 1:
            program.may_fail(program.call(SYS.SETSID))
        root.run(program)
        self._beget(first, inherited=first.session)
        self._beget_strangers()
        for one in self._children[0]:
            self._bring_in(one)
        self._beget_strangers()
        for one in list(self._orphans):
            self._adopt(one)
        missing = set(self._members) - set(self.stubs)
        if missing:
            raise UnsupportedResource(f"cannot find a way to make processes {sorted(missing)}")
        self._join_groups()
        self._leave_terminals()
        self._namespaces.make_ended()
        self._namespaces.set_clocks(
            (self.stubs[one.pid], one.namespaces) for one in self._plan.processes
        )
        self._bury()

    def _beget(self, parent: Member, inherited: int) -> None:
        """Make the descendants of a process that stands; `inherited` is its session so far."""
        stub = self.stubs[parent.pid]
        children = self._children[parent.pid]
        before, after = [], []
        for child in children:
            if self._is_stranger(parent, child):
                self._strangers.append((parent, child))
            elif child.session in (child.pid, parent.session):
                after.append(child)
            elif child.session == inherited:
                before.append(child)
            else:
                self._orphans.append(child)
        with while_(f"making the children of process {parent.pid}"):
            stub.born.clear()
            made = self._make(stub, parent, before)
            if parent.session == parent.pid:
                program = stub.program()
                if parent.pid != 1 and parent.parent:
                    program.call(SYS.SETSID)
                if isinstance(parent, Process):
                    terminals.take(program, self._plan, parent)
                stub.run(program)
            made += self._make(stub, parent, after)
        for child, pid in zip(made, stub.born, strict=True):
            # Who is born first in a pid namespace of a user namespace is where it is to be.
            begun = child.is_first and self._is_in_users(child) and not self._is_in_users(parent)
            self._stand(stub, child, pid, _membership(child if begun else parent))
        for child in before:
            self._beget(child, inherited)
        for child in after:
            self._beget(child, parent.session)

    def _is_stranger(self, parent: Member, child: Member) -> bool:
        """Tell whether a child is in another pid namespace, whose first process it isn't."""
        namespace = child.pid_namespace
        return namespace != parent.pid_namespace and not child.is_first

    def _beget_strangers(self) -> None:
        """Make processes in pid namespaces that their parents are not in, and their descendants."""
        while ready := [
            (parent, child)
            for parent, child in self._strangers
            if self._namespaces.has_pid_namespace(child.pid_namespace)
        ]:
            self._strangers = [pair for pair in self._strangers if pair not in ready]
            for parent, child in ready:
                stub = self.stubs[parent.pid]
                self._namespaces.know_pid_namespace(parent.pid_namespace, stub)
                with (
                    while_(f"making process {child.pid}, in a pid namespace of others"),
                    self._namespaces.children_in(stub, child.pid_namespace, parent.pid_namespace),
                ):
                    program = stub.program()
                    self._clone(program, child)
                    stub.born.clear()
                    stub.run(program)
                self._stand(stub, child, stub.born[0], _membership(parent))
                self._beget(child, parent.session)

    def _bring_in(self, one: Member) -> None:
        """Make a process that `exec` had brought in, and its descendants."""
        with while_(f"making process {one.pid}, which exec had brought in"):
            stub = self.stubs[one.pid] = self._make_outside(one.pid)
        self._namespaces.join(stub, _membership(one), {})
        program = stub.program()
        self._keyrings.bring_in(program, stub)
        if isinstance(one, Process):
            process_module.restore_attributes(program, one)
            self._keyrings.join(program, stub, one.keyring)
        if one.session == one.pid:
            program.call(SYS.SETSID)
        stub.run(program)
        self._beget(one, one.session)

    def _make(self, stub: Stub, parent: Member, children: Sequence[Member]) -> list[Member]:
        """Clone children, each with what it inherits; returns them in the order that they come."""
        wishes: dict[int, Wish] = {}
        if self._inheritance and not self._is_in_users(parent):
            wishes = self._inheritance.wishes(parent, children)
        # Those that share nothing come first, and without what their siblings share.
        made = sorted(children, key=lambda child: child.pid in wishes)
        program = stub.program()
        for child in made:
            if self._is_born_elsewhere(parent, child):
                stub.run(program)
                self._bear(stub, parent, child)
                program = stub.program()
                if self._inheritance:
                    self._inheritance.bear(parent, child)
                continue
            if self._inheritance and child.pid in wishes:
                stub.run(program)
                self._inheritance.prepare(stub, parent, wishes[child.pid])
                program = stub.program()
            self._clone(program, child)
            if self._inheritance:
                self._inheritance.bear(parent, child)
        stub.run(program)
        return made

    def _is_in_users(self, one: Member) -> bool:
        """Tell whether a process was born in a nested user namespace."""
        return self._namespaces.users.born_ids(one.pid) is not None

    def _is_born_elsewhere(self, maker: Member, child: Member) -> bool:
        """Tell whether somebody must help a process to have a child of the right ids."""
        begins = child.is_first and self._namespaces.users.owner_of(child.pid_namespace)
        return bool(begins) or self._is_in_users(maker)

    def _bear(self, stub: Stub, maker: Member, child: Member) -> None:
        """Make a child in a nested user namespace."""
        ids = self._namespaces.users.born_ids(maker.pid)
        if ids is None:
            spare = [self._next_spare()] * len(maker.ids)
            born_in = _membership(maker)
            born = self._namespaces.users.bear_first(stub, spare, child.exit_signal, child, born_in)
            stub.born.append(born)
            return
        flags, signal = self._flags(child)
        self._namespaces.users.bear(stub, flags, signal, child.ids)
        if isinstance(child, Process):
            self._namespaces.users.note_birth(child, self._namespaces.users.born_in(maker.pid), ids)

    def _flags(self, child: Member) -> tuple[int, int]:
        """Return the flags of clone(2) for a process, and its exit signal."""
        flags, signal = kinship.flags(child), child.exit_signal
        if self._makers[child.pid].how is How.SIBLING:
            # Its exit signal is that of the maker.
            flags, signal = flags | kinship.CLONE_PARENT, 0
        return flags | (CLONE_NEWPID if child.is_first else 0), signal

    def _clone(self, program: Program, child: Member) -> None:
        flags, signal = self._flags(child)
        syscalls.clone3(program, flags, signal, child.ids)

    def _stand(self, parent: Stub, child: Member, pid: int, born_in: Membership) -> Stub:
        """Take a newborn process over, and have it join its namespaces."""
        await_birth(pid)
        stub = self.stubs[child.pid] = Stub(pid, parent.base, parent.size)
        if isinstance(child, Process):
            self._namespaces.join(stub, child.namespaces, born_in)
        if child.is_first:
            self._namespaces.know_pid_namespace(child.pid_namespace, stub)
        if isinstance(child, Process):
            program = stub.program()
            process_module.restore_attributes(program, child)
            self._keyrings.inherit(stub, parent)
            self._keyrings.join(program, stub, child.keyring)
            stub.run(program)
        self._set_group_early(child)
        return stub

    def _adopt(self, one: Member) -> None:
        """Make a process whose former parent has ended, in a session that it did not start.

        A passing process joins or starts the session, makes it, and ends, so that the kernel gives
        it to the same new parent as before.
        """
        if one.pid in self.stubs:
            return
        way = self._makers[one.pid]
        family = [
            other
            for other in self._orphans
            if other.session == one.session
            and other.parent == one.parent
            and self._makers[other.pid] == way
        ]
        maker, begins_session, flags = one.session, False, 0
        if way.how is How.ORPHAN:
            maker, flags = way.pid, reduce(or_, map(kinship.flags, family))
            if maker not in self.stubs:
                self._adopt(self._members[maker])
        elif one.session not in self.stubs:
            maker, begins_session = one.parent, True
        making = self._members[maker]
        ids = session_ids(one) if begins_session else [self._next_spare()] * len(making.ids)
        with while_(f"making process {one.pid}, whose former parent has ended"):
            passing = self._passing(making, ids, flags)
            self._keyrings.inherit(passing, self.stubs[maker])
            program = passing.program()
            if begins_session:
                program.call(SYS.SETSID)
            passing.run(program)
            for member in family:
                program = passing.program()
                if self._is_in_users(making):
                    self._bear(passing, making, member)
                else:
                    self._clone(program, member)
                passing.run(program)
            for member, born in zip(family, passing.born, strict=True):
                self._stand(passing, member, born, _membership(making))
            passing_processes.end(self.stubs[maker], passing, ids[-1])
            for member in family:
                self._beget(member, member.session)

    def _passing(self, maker: Member, ids: Sequence[int], flags: int = 0) -> Stub:
        """Have a process make a passing one with these ids."""
        stub = self.stubs[maker.pid]
        if not self._is_in_users(maker):
            return passing_processes.make(stub, ids, flags)
        stub.born.clear()
        self._namespaces.users.bear(stub, flags, 0, ids)
        await_birth(stub.born[0])
        return Stub(stub.born[0], stub.base, stub.size)

    @contextmanager
    def passing(self, pid: int = 0, status: int = 0) -> Iterator[int]:
        """Have a process with this id, or any, for a moment; then it ends by a wait status.

        Its parent is the first process, which must be blank still.
        """
        pid = pid or self._next_spare()
        maker = self.stubs[1]
        passing = passing_processes.make(maker, [pid])
        yield pid
        passing_processes.end(maker, passing, pid, status)

    def _next_spare(self) -> int:
        self._spare_pid += 1
        return self._spare_pid

    def _join_groups(self) -> None:
        leaders = [one for one in self._members.values() if one.group == one.pid]
        others = [one for one in self._members.values() if one.group not in (one.pid, 0)]
        for one in leaders:
            if one.session != one.pid:
                self._set_group(one)
        ended: dict[int, list[Member]] = defaultdict(list)
        for one in others:
            if one.group in self._members:
                self._set_group(one)
            elif one.group != one.session:
                ended[one.group].append(one)
        for group, members in ended.items():
            # The group's first process has ended: one of the same id starts it, and ends again. It
            # was in the pid namespace of those who know it.
            made_by = max(members, key=lambda one: len(group_ids(one)))
            ids = group_ids(made_by)
            maker = self.stubs[made_by.pid]
            with while_(f"making process group {group}"):
                passing = self._passing(made_by, ids)
                program = passing.program()
                program.call(SYS.SETPGID, 0, 0)
                passing.run(program)
                for member in members:
                    self._set_group(member)
                passing_processes.end(maker, passing, ids[-1])

    def _leave_terminals(self) -> None:
        for one in self._plan.processes:
            leader = self._members.get(one.session)
            if one.left_terminal and isinstance(leader, Process):
                terminals.leave(self.stubs[one.pid], self._plan, one, leader)

    def _set_group(self, one: Member) -> None:
        """Set a process's group: by itself, or where it doesn't see that, by its parent."""
        stub = self.stubs[one.pid]
        who, group = 0, self._plan.pids.seen_by(one, one.group)
        if not group:
            leader = self.stubs.get(one.group)
            if leader and os.getpgid(stub.pid) == leader.pid:
                return  # it was born in it
            parent = self._members[one.parent]
            stub = self.stubs[parent.pid]
            who, group = one.ids[len(parent.ids) - 1], self._plan.pids.seen_by(parent, one.group)
        program = stub.program()
        program.call(SYS.SETPGID, who, group)
        with while_(f"setting the process group of process {one.pid}"):
            stub.run(program)

    def _set_group_early(self, one: Member) -> None:
        """Set the group of a newborn process, if one that doesn't see it may be born in it."""
        if self._plan.pids.namespaces and one.session != one.pid and one.group in self.stubs:
            self._set_group(one)

    def _bury(self) -> None:
        """Let zombies die, before signal actions exist that would reap them."""
        for zombie in self._plan.zombies:
            stub = self.stubs.pop(zombie.pid)
            program = stub.program()
            syscalls.prctl(program, 15, zombie.name)
            stub.run(program)
            passing_processes.end_by(stub, zombie.status)
            stub.close()
        for stub in self.stubs.values():
            program = stub.program()
            signals.forget_children(program, {zombie.exit_signal for zombie in self._plan.zombies})
            stub.run(program)


def _membership(one: Member) -> Membership:
    """Return the nested namespaces of a process; one that has ended has none."""
    return one.namespaces if isinstance(one, Process) else {}
