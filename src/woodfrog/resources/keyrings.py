"""Session keyrings, with keys of type `user` in them (keyrings(7))."""

import os
import struct
from collections.abc import Callable, Mapping

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part, Record
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import checked
from woodfrog.kernel.capability import CAP_SETUID
from woodfrog.remote.program import Program
from woodfrog.remote.seccomp import Filters

# The first process's; a record has it only if there is something in it.
FIRST = 1

_GET_KEYRING_ID, _JOIN_SESSION_KEYRING, _CHOWN, _SETPERM, _DESCRIBE = 0, 1, 4, 5, 6
_LINK, _READ = 8, 11
_THREAD, _PROCESS, _SESSION, _USER = -1, -2, -3, -4
_LONGEST_DESCRIPTION, _LONGEST_PAYLOAD = 4096, 32767
MOST_KEYS = 1000
_USER_SEARCH, _ANYBODY_SEARCH = 0x080000, 0x080808
_OF_USERS = b"_uid"  # keyrings that each user has; those are the host's
_ANONYMOUS = b"_ses"  # the name of one that was made without
_OWN = b"_ses."  # and begin of that of a container's own


class Key(Part, frozen=True):
    """A key of type `user`; `permissions` are as keyctl(2) has them."""

    description: bytes
    payload: bytes
    uid: int
    gid: int
    permissions: int


class Keyring(Record, frozen=True, tag="keyring"):
    """A session keyring. `has_users` if the keyring of the user is linked to it."""

    id: int
    name: bytes
    uid: int
    gid: int
    permissions: int
    has_users: bool
    keys: list[Key]

    @property
    def is_anonymous(self) -> bool:
        """Whether it has been made without a name."""
        return self.name in (b"", _ANONYMOUS)

    @property
    def can_be_joined(self) -> bool:
        """Whether processes of its user find it by its name."""
        return not self.is_anonymous and bool(self.permissions & _USER_SEARCH)


class Description:
    """What KEYCTL_DESCRIBE tells of a key."""

    def __init__(self, text: bytes) -> None:
        kind, uid, gid, permissions, self.text = text.split(b"\0")[0].split(b";", 4)
        self.kind = kind.decode()
        self.uid, self.gid, self.permissions = int(uid), int(gid), int(permissions, 16)

    @property
    def is_of_users(self) -> bool:
        """Whether it is a keyring that each user has."""
        return self.kind == "keyring" and self.text.startswith(_OF_USERS)


def ask(program: Program) -> Callable[[], tuple[int, list[int]]]:
    """Add the calls that tell which keyrings a task has: its session's, and any of its own."""
    rings = [
        program.may_fail(program.call(SYS.KEYCTL, _GET_KEYRING_ID, which, 0))
        for which in (_SESSION, _PROCESS, _THREAD)
    ]

    def answered() -> tuple[int, list[int]]:
        session, *own = program.results(rings)
        return max(session, 0), [ring for ring in own if ring > 0]

    return answered


def ask_members(program: Program, ring: int) -> Callable[[], list[int]]:
    """Add the call that tells which keys are in a keyring."""
    members = bytearray(4 * MOST_KEYS)
    length = program.may_fail(program.call(SYS.KEYCTL, _READ, ring, members, len(members)))

    def answered() -> list[int]:
        checked(SYS.KEYCTL, program[length])
        if program[length] > len(members):
            raise UnsupportedResource(f"has a keyring with more than {MOST_KEYS} keys")
        return [key for (key,) in struct.iter_unpack("<i", members[: program[length]])]

    return answered


def ask_description(program: Program, key: int) -> Callable[[], Description]:
    """Add the call that tells what a key is."""
    text = bytearray(_LONGEST_DESCRIPTION)
    program.call(SYS.KEYCTL, _DESCRIBE, key, text, len(text))
    return lambda: Description(bytes(text))


def ask_payload(program: Program, key: int) -> Callable[[], bytes]:
    """Add the call that reads a key; the program fails if that is not allowed."""
    payload = bytearray(_LONGEST_PAYLOAD)
    length = program.call(SYS.KEYCTL, _READ, key, payload, len(payload))
    return lambda: bytes(payload[: program[length]])


def check(rings: Mapping[int, Keyring]) -> None:
    """Check keyrings of an image."""
    for ring in rings.values():
        if len(ring.keys) > MOST_KEYS or any(
            len(key.payload) > _LONGEST_PAYLOAD or not 0 < len(key.description) < 4096
            for key in ring.keys
        ):
            raise ImageError("the image has keys that no kernel has")


def ask_own_name(program: Program) -> Callable[[], bytes]:
    """Add the call that tells the name of the new container's own session keyring, or b""."""
    text = bytearray(_LONGEST_DESCRIPTION)
    asked = program.may_fail(program.call(SYS.KEYCTL, _DESCRIBE, _SESSION, text, len(text)))

    def answered() -> bytes:
        name = Description(bytes(text)).text if program[asked] > 0 else b""
        return name if name.startswith(_OWN) else b""

    return answered


def fill(program: Program, ring: Keyring) -> None:
    """Make the keys of a keyring in the session keyring that a stub has."""
    for key in ring.keys:
        made = program.call(
            SYS.ADD_KEY, b"user", key.description, key.payload, len(key.payload), _SESSION
        )
        program.call(SYS.KEYCTL, _SETPERM, made, key.permissions)
        if key.uid or key.gid:
            program.call(SYS.KEYCTL, _CHOWN, made, key.uid, key.gid)
    if ring.has_users:
        program.call(SYS.KEYCTL, _LINK, _USER, _SESSION)


def join(program: Program, ring: Keyring) -> Callable[[], None]:
    """Have a stub join a session keyring; returns what checks that it was not there before.

    Names are those of all containers that have no user namespace of their own, and the host's.
    """
    name = 0 if ring.is_anonymous else ring.name
    program.call(SYS.KEYCTL, _JOIN_SESSION_KEYRING, name)
    ask = ask_description(program, _SESSION)

    def check_new() -> None:
        # Nobody but its owner's possessors finds one that has just been made.
        if ask().permissions & _ANYBODY_SEARCH:
            raise UnsupportedResource(
                f"there is a keyring {os.fsdecode(ring.name)!r} already, outside the new container",
                hint="end what has it, or give the container a user namespace",
            )

    return check_new


def set_up(program: Program, ring: Keyring) -> None:
    """Make the keys of a keyring that a stub has just made as its session's, and its owner."""
    fill(program, ring)
    if ring.uid or ring.gid:
        program.call(SYS.KEYCTL, _CHOWN, _SESSION, ring.uid, ring.gid)
    program.call(SYS.KEYCTL, _SETPERM, _SESSION, ring.permissions)


def refuse_wider(rings: Mapping[int, Keyring], bounding: int, seccomp: bytes | None) -> None:
    """Refuse the keyring of a user whom the new container can't be, or may not ask for keys.

    It is that of the container's root, which without a user namespace of its own is the host's.
    """
    if not any(ring.has_users for ring in rings.values()):
        return
    filters = Filters([seccomp] if seccomp is not None else [], strict=False)
    if not bounding >> CAP_SETUID & 1 or not filters.allow(SYS.KEYCTL, [None] * 6):
        raise UnsupportedResource(
            "the image has a session with the keyring of its user, which the new container may not"
            " use (CAP_SETUID, or its seccomp profile)",
            hint="add CAP_SETUID to process.capabilities, and allow keyctl(2) in linux.seccomp",
        )


def join_by_name(program: Program, name: bytes) -> None:
    """Have a stub that came from outside join the container's own keyring."""
    program.may_fail(program.call(SYS.KEYCTL, _JOIN_SESSION_KEYRING, name))
