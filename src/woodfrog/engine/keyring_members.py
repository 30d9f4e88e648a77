"""Which session keyring each stub has: it comes from its maker, or is joined."""

from collections.abc import Mapping
from functools import cached_property

from woodfrog.errors import UnsupportedResource, while_
from woodfrog.remote.program import Program
from woodfrog.remote.stub import Stub
from woodfrog.resources import keyrings
from woodfrog.resources.keyrings import FIRST, Keyring


class KeyringMembers:
    """The stubs, by our ids, and their keyrings, by those of the image."""

    def __init__(self, rings: Mapping[int, Keyring], root: Stub) -> None:
        self._rings = rings
        self._of = {root.pid: FIRST}
        self._made = {FIRST}
        self._root = root
        if FIRST in rings:
            if not self._own_name:
                raise UnsupportedResource(
                    "the image has keys in the container's keyring, and the new container has none",
                    hint="make it without --no-new-keyring",
                )
            program = root.program()
            keyrings.fill(program, rings[FIRST])
            with while_("making the keys of the container's keyring"):
                root.run(program)

    @cached_property
    def _own_name(self) -> bytes:
        """What the container's keyring is called; few containers need that."""
        program = self._root.program()
        ask = keyrings.ask_own_name(program)
        self._root.run(program)
        return ask()

    def bring_in(self, program: Program, stub: Stub) -> None:
        """Have a stub from outside leave our own keyring."""
        if self._own_name:
            keyrings.join_by_name(program, self._own_name)
        self._of[stub.pid] = FIRST

    def inherit(self, stub: Stub, maker: Stub) -> None:
        """Note that a stub has its maker's."""
        self._of[stub.pid] = self._of.get(maker.pid, FIRST)

    def join(self, program: Program, stub: Stub, ring: int) -> None:
        """Have a stub join a keyring, unless it is there."""
        if self._of[stub.pid] == ring:
            return
        self._of[stub.pid] = ring
        if ring == FIRST:
            keyrings.join_by_name(program, self._own_name)
        else:
            self._join_other(stub, self._rings[ring], is_new=ring not in self._made)
            self._made.add(ring)

    def _join_other(self, stub: Stub, ring: Keyring, *, is_new: bool) -> None:
        program = stub.program()
        check_new = keyrings.join(program, ring)
        stub.run(program)
        if is_new:
            check_new()
            program = stub.program()
            keyrings.set_up(program, ring)
            with while_("making the keys of a session's keyring"):
                stub.run(program)
