"""Has the keeper of a container, or who holds a template, do a command, by as little code as
possible: most of the time that a small command takes goes into loading modules.

So the command line is only looked at here, by rules that are narrower than those of cli/flags.py;
who does the command reads it properly. Nothing is imported that the interpreter doesn't have
already, but for sockets.
"""

from __future__ import annotations

import posix

from woodfrog.runtime import asking
from woodfrog.runtime.asking import DETACHED, KEEPER, TEMPLATE, Door

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

# The flags that are known here, and whether they take a value. (Among others, those of a command
# that a keeper doesn't do are not.)
GLOBAL_FLAGS = {"root": True, "log": True, "log-format": True, "config": True, "debug": False}
FLAGS = {
    "rollback": {"image-path": True, "parent": True, "stats": False, "file-validation": True},
    "checkpoint": {
        "image-path": True,
        "work-path": True,
        "parent": True,
        "parent-path": True,
        "compression": True,
        "sync": True,
        "leave-running": False,
        "pre-dump": False,
        "track-changes": False,
        "with-rootfs": False,
        "stats": False,
    },
    # By a template, if whoever asks needn't stay.
    "restore": {"template": True, "bundle": True, "b": True, "detach": False, "d": False}
    | {"count": True},
}
_DETACHING = ("detach", "d", "count")


class Answer:
    """What became of a request: whether somebody has `begun` with it, and the exit status."""

    def __init__(self, *, begun: bool, status: int | None) -> None:
        self.begun = begun
        self.status = status


def forward(words: list[str], default_root: str) -> Answer | None:
    """Have a command done if its command line is a usual one; None if nobody was asked."""
    found = _read(words, default_root)
    if found is None:
        return None
    try:
        for number in range(3):
            posix.fstat(number)
        root, id, template = found
        if template:
            return _ask_template(root, template, words)
        return ask(root, id, words, posix.environ)
    except OSError:
        return None


def _read(words: list[str], default_root: str) -> tuple[str, str, str] | None:
    """Return the root, the id and the template (or "") that a command line is about.

    None, if not all in it is known here.
    """
    known, ids, values = GLOBAL_FLAGS, list[str](), {"root": default_root, "template": ""}
    left = iter(words)
    for word in left:
        if not word.startswith("-"):
            if known is not GLOBAL_FLAGS:
                ids.append(word)
            elif word in FLAGS:
                known = FLAGS[word]
            else:
                return None
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if name not in known:
            return None
        if known[name] and not equals:
            value = next(left, "")
        elif equals and not known[name] and known is FLAGS["restore"]:
            return None  # it may say "false"
        values[name] = value
    root, template = values["root"], values["template"]
    if not root or len(ids) != 1 or "/" in ids[0]:
        return None
    if known is FLAGS["restore"]:
        is_plain = template.isascii() and template.replace("-", "").replace("_", "").isalnum()
        if not is_plain or not any(flag in values for flag in _DETACHING):
            return None
    return root, ids[0], template


def _ask_template(root: str, name: str, words: list[str]) -> Answer:
    """Have a template make clones."""
    connection = Door(f"{root.rstrip('/')}.templates/{name}", TEMPLATE).knock()
    if connection is None:
        return Answer(begun=False, status=None)
    begun: list[int] = []
    status = asking.ask(connection, words, posix.environ, begun.append, DETACHED)
    return Answer(begun=bool(begun), status=status)


def ask(root: str, id: str, words: list[str], environ: Mapping[bytes, bytes]) -> Answer:
    """Have the keeper of a container do a command, if there is one."""
    connection = Door(f"{root}/{id}", KEEPER).knock()
    if connection is None:
        return Answer(begun=False, status=None)
    begun: list[int] = []
    try:
        status = asking.ask(connection, words, environ, begun.append)
    except KeyboardInterrupt:
        _give_up(connection)
        raise
    finally:
        connection.close()
    return Answer(begun=bool(begun), status=status)


def _give_up(connection: socket.socket) -> None:
    """Tell who works for us, and wait until all is as it was."""
    from woodfrog.kernel.sockets import sockets

    connection.shutdown(sockets.SHUT_WR)
    while connection.recv(4):
        pass
