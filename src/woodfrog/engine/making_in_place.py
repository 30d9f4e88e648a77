"""Making files for processes that stand already: what the kernel notes of its makers, they do."""

import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import TypeVar

from woodfrog.engine import root_stub
from woodfrog.engine.irrecoverable import lost_since
from woodfrog.engine.making_files import Making
from woodfrog.engine.plan import Plan
from woodfrog.engine.standing import Match, Standing
from woodfrog.errors import UnsupportedResource, while_
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote import descriptors
from woodfrog.remote.program import Program
from woodfrog.remote.stub import Stub
from woodfrog.resources.files.making import Maker
from woodfrog.resources.files.open_file import ACCESS_MODE
from woodfrog.resources.files.regular import RegularFile
from woodfrog.resources.files.unix_socket import UnixSocketFile
from woodfrog.resources.process import Process

T = TypeVar("T")
_AT_FDCWD, _AT_EACCESS = -100, 0x200
_WANTED = {os.O_RDONLY: os.R_OK, os.O_WRONLY: os.W_OK, os.O_RDWR: os.R_OK | os.W_OK}
_CALLS_AT_ONCE = 100


class MakingInPlace(Making):
    """Makes files by a passing process, beside those that stand, by their ids (`standing`).

    `owners` are these of what they have, by the ids of the files.
    """

    standing: Mapping[int, Stub] = {}
    owners: Mapping[int, Maker] = {}

    def refuse_unopenable(self, records: Iterable[RegularFile]) -> None:
        """Refuse files that may not be opened any more with the rights that `make_files` has."""
        self._set_capabilities(self.capabilities)
        asked: list[tuple[RegularFile, Program, int]] = []
        for record in records:
            program, wanted = self.program, _WANTED.get(record.flags & ACCESS_MODE, 0)
            path = record.path + b"\0"
            result: int = program.call(SYS.FACCESSAT2, _AT_FDCWD, path, wanted, _AT_EACCESS)
            program.may_fail(result)
            asked.append((record, program, result))
            if len(program) > _CALLS_AT_ONCE:
                self.run()
        self._set_capabilities(self.permitted)
        self.run()
        for record, program, result in asked:
            if program[result] < 0:
                raise UnsupportedResource(
                    f"{os.fsdecode(record.path)} is to be opened again, and may not be any more by"
                    f" the container's root: {os.strerror(-program[result])}",
                    hint="give it back the owner and mode that it had",
                )

    def owner(self, file: int) -> Maker | None:
        """See the protocol."""
        return self.owners.get(file)

    def stands(self, maker: Maker | None) -> bool:
        """See the protocol."""
        return maker is not None and maker.pid in self.standing

    def acting(self, as_whom: Maker | None, make: Callable[[], T]) -> T:
        """See the protocol; nobody else can have the id of one that stands, but name it."""
        if not self.stands(as_whom):
            return super().acting(as_whom, make)
        with self.by_all_rights():
            return make()

    def by_process(
        self,
        maker: Maker,
        given: list[int],
        act: Callable[[Program, list[int]], tuple[int, ...]],
    ) -> tuple[int, ...]:
        """See the protocol."""
        self.run()
        stub = self.standing[maker.pid]
        ours = [descriptors.fetch(self.stub.pid, fd) for fd in given]
        try:
            with (
                while_(f"having process {maker.pid} make a socket"),
                root_stub.raised_descriptor_limit(stub),
            ):
                got = descriptors.give(stub, ours) if ours else []
                program = stub.program()
                made = act(program, got)
                stub.run(program)
                numbers = [program[one] for one in made]
                ours += (descriptors.fetch(stub.pid, number) for number in numbers)
                program = stub.program()
                for number in (*got, *numbers):
                    syscalls.close(program, number)
                stub.run(program)
            return tuple(self.send(one) for one in ours[len(given) :])
        finally:
            for one in ours:
                os.close(one)


def as_maker(process: Process) -> Maker:
    """Return a process as the kernel notes it of what it makes."""
    who = process.threads[0].credentials
    return Maker(pid=process.pid, uid=who.uids[1], gid=who.gids[1], groups=who.groups)


def kept_listeners(match: Match, plan: Plan) -> dict[object, UnixSocketFile]:
    """Return the listening unix sockets that stay, and through which others are made anew."""
    wanted = {bond for record in match.remade.values() for bond in record.follows()}
    return {
        bond: record
        for record in plan.files_of("unix-socket")
        for bond in record.leads()
        if bond in wanted and record.id not in match.remade
    }


def makers(match: Match, plan: Plan) -> Iterator[tuple[UnixSocketFile, Maker]]:
    """Go through who must make sockets anew, or be taken for that."""
    kept = kept_listeners(match, plan)
    sockets = [one for one in match.remade.values() if isinstance(one, UnixSocketFile)]
    led = {one.pair for one in sockets if one.pair and kept.keys() & {*one.follows()}}
    waiting = {one.inode: one.id for one in sockets if one.unaccepted}
    for record in sockets:
        found = [arrived.maker for arrived in record.arrived]
        if not record.arrived:
            clients = {waiting[inode] for inode in record.pending if inode in waiting}
            holders = {pid for client in clients for pid in plan.holders(client)}
            found += (as_maker(one) for one in plan.processes if one.pid in holders)
        if record.accepted or record.pair not in led:
            found.append(record.peer)
        yield from ((record, maker) for maker in found if maker)


def refuse_makers(match: Match, plan: Plan, zombies: Container[int]) -> None:
    """Refuse to make sockets anew whose makers can't do that, or could no more."""
    standing = {one.then.pid: one for one in match.processes}
    for record, maker in makers(match, plan):
        what = f"a unix socket {os.fsdecode(record.name or record.peer_name)}".rstrip()
        if maker.pid in zombies:
            raise lost_since(
                f"{what} was made by process {maker.pid}, which has ended and was not waited for"
                " yet"
            )
        if maker.pid in standing:
            _refuse_maker(what, maker, standing[maker.pid], record)


def _refuse_maker(what: str, maker: Maker, one: Standing, record: UnixSocketFile) -> None:
    now = as_maker(one.then)
    if (now.uid, now.gid, {*now.groups}) != (maker.uid, maker.gid, {*maker.groups}):
        raise lost_since(
            f"{what} was made by {one.held.name} when it was another user (SO_PEERCRED)"
        )
    if record.name[:1] not in (b"", b"\0") and not os.path.exists(
        f"{one.held.path}/root/proc/{maker.pid}/fd"
    ):
        raise UnsupportedResource(
            f"{what} was made by {one.held.name}, which has no /proc to find it again"
        )
