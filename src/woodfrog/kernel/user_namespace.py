"""User namespaces: made with their id maps, looked into, and entered as their root."""

from __future__ import annotations

import os

from woodfrog.kernel import namespaces as ns
from woodfrog.kernel.caller import HERE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def make(uid_map: bytes, gid_map: bytes) -> int:
    """Return a descriptor of a new user namespace with these maps."""

    def leave() -> None:
        ns.unshare(HERE, ns.CLONE_NEWUSER)

    def describe(pid: int) -> int:
        for name, text in (("uid_map", uid_map), ("gid_map", gid_map)):
            with open(f"/proc/{pid}/{name}", "wb", buffering=0) as file:
                file.write(text)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)

    return _with_child(leave, describe)


def write_maps(
    pid: int, uid_map: bytes, gid_map: bytes, *, setgroups: bool, above: int | None
) -> None:
    """Write the maps of the user namespace that a process, our `pid`, has just made.

    Those that are empty stay unset. Without `setgroups` nobody in it may set groups. The kernel
    takes maps only from the user namespace above: `above` is a descriptor of it, if it isn't ours.
    """
    setting = b"" if setgroups else b"deny"

    def write() -> None:
        if above is not None:
            ns.setns(HERE, above, ns.CLONE_NEWUSER)
        for name, text in (("setgroups", setting), ("uid_map", uid_map), ("gid_map", gid_map)):
            if text:
                with open(f"/proc/{pid}/{name}", "wb", buffering=0) as file:
                    file.write(text)

    if above is None:
        write()
    else:
        _with_child(write, lambda child: 0)


def read_maps(namespace: int) -> tuple[str, str]:
    """Return the texts of uid_map and gid_map of the user namespace that a descriptor names."""
    uid_map, gid_map, _ = read_all(namespace)
    return uid_map, gid_map


def read_all(namespace: int) -> tuple[str, str, str]:
    """Return those, and that of setgroups."""
    texts: list[str] = []

    def enter() -> None:
        ns.setns(HERE, namespace, ns.CLONE_NEWUSER)

    def read(pid: int) -> int:
        for name in ("uid_map", "gid_map", "setgroups"):
            with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
                texts.append(file.readall().decode())
        return 0

    _with_child(enter, read)
    return texts[0], texts[1], texts[2]


def _with_child(prepare: Callable[[], None], look: Callable[[int], int]) -> int:
    """Have a child prepare itself, and look at it from outside."""
    told, tell = os.pipe()
    held, hold = os.pipe()
    pid = os.fork()
    if pid == 0:
        number = 0
        try:
            os.close(hold)
            prepare()
        except OSError as error:
            number = error.errno or 1
        finally:
            os.write(tell, bytes([number]))
            os.read(held, 1)
            os._exit(0)
    try:
        os.close(tell)
        number = (os.read(told, 1) or b"\5")[0]
        if number:
            raise OSError(number, os.strerror(number))
        return look(pid)
    finally:
        for descriptor in (told, held, hold):
            os.close(descriptor)
        os.waitpid(pid, 0)


def become_root() -> None:
    """Take the ids of the root of the user namespace that we have just entered."""
    os.setresgid(0, 0, 0)
    try:
        os.setgroups([])
    except PermissionError:
        pass  # the namespace was made so that none of its groups can be dropped
    os.setresuid(0, 0, 0)
