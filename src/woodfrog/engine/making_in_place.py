"""Making files for processes that stand already: what the kernel notes of its makers, they do."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from woodfrog.engine import root_stub
from woodfrog.engine.irrecoverable import lost_since
from woodfrog.engine.making_files import Making
from woodfrog.engine.plan import Plan
from woodfrog.engine.standing import Match, Standing
from woodfrog.errors import UnsupportedResource, while_
from woodfrog.kernel import syscalls
from woodfrog.remote import descriptors
from woodfrog.remote.program import Program
from woodfrog.remote.stub import Stub
from woodfrog.resources.files.base import Maker
from woodfrog.resources.files.unix_socket import UnixSocketFile

T = TypeVar("T")


class MakingInPlace(Making):
    """Makes files by a passing process, beside those that stand, by their ids (`standing`)."""

    standing: Mapping[int, Stub] = {}

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


def kept_listeners(match: Match, plan: Plan) -> dict[object, UnixSocketFile]:
    """Return the listening unix sockets that stay, and through which others are made anew."""
    wanted = {bond for record in match.remade.values() for bond in record.follows()}
    return {
        bond: record
        for record in plan.files_of("unix-socket")
        for bond in record.leads()
        if bond in wanted and record.id not in match.remade
    }


def refuse_makers(match: Match, plan: Plan, zombies: Iterable[int]) -> None:
    """Refuse to make sockets anew whose makers can't do that, or could no more."""
    kept = kept_listeners(match, plan)
    standing = {one.then.pid: one for one in match.processes}
    gone = {*zombies}
    sockets = [one for one in match.remade.values() if isinstance(one, UnixSocketFile)]
    led = {one.pair for one in sockets if one.pair and kept.keys() & {*one.follows()}}
    for record in sockets:
        what = f"a unix socket {os.fsdecode(record.name or record.peer_name)}".rstrip()
        makers = [arrived.maker for arrived in record.arrived]
        if record.accepted or record.pair not in led:
            makers.append(record.peer)
        for maker in makers:
            if maker and maker.pid in gone:
                raise lost_since(
                    f"{what} was made by process {maker.pid}, which has ended and was not waited"
                    " for yet"
                )
            if maker and maker.pid in standing:
                _refuse_maker(what, maker, standing[maker.pid], record)


def _refuse_maker(what: str, maker: Maker, one: Standing, record: UnixSocketFile) -> None:
    who = one.then.threads[0].credentials
    if (who.uids[1], who.gids[1], {*who.groups}) != (maker.uid, maker.gid, {*maker.groups}):
        raise lost_since(
            f"{what} was made by {one.held.name} when it was another user (SO_PEERCRED)"
        )
    if record.name[:1] not in (b"", b"\0") and not os.path.exists(
        f"{one.held.path}/root/proc/{maker.pid}/fd"
    ):
        raise UnsupportedResource(
            f"{what} was made by {one.held.name}, which has no /proc to find it again"
        )
