"""The keyrings of held processes: those of sessions are kept, with keys that can be read."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from woodfrog.engine.obstacles import Obstacles
from woodfrog.errors import UnsupportedResource
from woodfrog.remote.held import HeldProcess
from woodfrog.remote.program import ProgramError
from woodfrog.remote.scratch import Scratch
from woodfrog.resources import keyrings
from woodfrog.resources.keyrings import FIRST, Key, Keyring


class Collected(Protocol):
    """A process whose record's fields are known."""

    held: HeldProcess
    fields: dict[str, Any]


class Keyrings:
    """All session keyrings, by what the kernel calls them."""

    def __init__(self) -> None:
        self._ids: dict[int, int] = {}
        self.records: dict[int, Keyring] = {}

    def of(self, scratch: Scratch, ask: Callable[[], tuple[int, list[int]]] | None) -> int:
        """Return the id of a process's session keyring; the first that is asked for is FIRST.

        `ask` is what `keyrings.ask` has given, if that has been asked.
        """
        if ask is None:
            program = scratch.program()
            ask = keyrings.ask(program)
            scratch.run(program)
        session, own = ask()
        for ring in own:
            if self._members(scratch, ring):
                raise UnsupportedResource(
                    "has keys of its own (in its process's or thread's keyring), which cannot be"
                    " saved yet",
                    hint="keys in the keyring of its session can be",
                )
        if session not in self._ids:
            number = self._ids[session] = len(self._ids) + FIRST
            if session and (record := self._collect(scratch, session, number)):
                self.records[number] = record
        return self._ids[session]

    def _members(self, scratch: Scratch, ring: int) -> list[int]:
        program = scratch.program()
        ask = keyrings.ask_members(program, ring)
        scratch.run(program)
        return ask()

    def _collect(self, scratch: Scratch, ring: int, number: int) -> Keyring | None:
        """Read a keyring; one of the host's is none."""
        program = scratch.program()
        ask = keyrings.ask_description(program, ring)
        members = keyrings.ask_members(program, ring)
        scratch.run(program)
        about = ask()
        if about.is_of_users:
            return None
        keys, has_users = [], False
        for member in members():
            program = scratch.program()
            describe = keyrings.ask_description(program, member)
            scratch.run(program)
            key = describe()
            if key.is_of_users:
                has_users = True
                continue
            if key.kind != "user":
                raise UnsupportedResource(
                    f"has a key of type {key.kind} in its session's keyring, which cannot be saved"
                )
            keys.append(
                Key(
                    description=key.text,
                    payload=self._payload(scratch, member, key.text),
                    uid=key.uid,
                    gid=key.gid,
                    permissions=key.permissions,
                )
            )
        if number == FIRST and not keys and not has_users:
            return None
        return Keyring(
            id=number,
            # The first process has the new container's own.
            name=about.text if number != FIRST else b"",
            uid=about.uid,
            gid=about.gid,
            permissions=about.permissions,
            has_users=has_users,
            keys=keys,
        )

    def _payload(self, scratch: Scratch, key: int, name: bytes) -> bytes:
        program = scratch.program()
        ask = keyrings.ask_payload(program, key)
        try:
            scratch.run(program)
        except ProgramError as error:
            raise UnsupportedResource(
                f"has a key that it may not read ({name.decode(errors='replace')}) in its"
                " session's keyring, which cannot be saved"
            ) from error
        return ask()

    def refuse_unjoinable(self, collected: Sequence[Collected], obstacles: Obstacles) -> None:
        """Refuse processes that share a keyring without a name with others than their parents."""
        rings = {one.fields["pid"]: one.fields["keyring"] for one in collected}
        joined: set[int] = set()
        for one in collected:
            ring = one.fields["keyring"]
            if ring == FIRST or rings.get(one.fields["parent"]) == ring:
                continue
            record = self.records.get(ring)
            with obstacles.at(one.held.name):
                if record is None or (ring in joined and not record.can_be_joined):
                    raise UnsupportedResource(
                        "has the keyring of a session which it could not join again: one of others"
                        " which it can't find by a name, or a user's; that cannot be saved yet"
                    )
            joined.add(ring)
