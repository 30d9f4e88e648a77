"""Images with unix sockets, message queues and files that no checkpoint makes."""

import os
import resource
import socket
import stat
from pathlib import Path

import msgspec
import pytest
from hostile import ID, Attack, attack

from images import RECORDS
from needs import needs
from woodfrog.image.container_file import Reader
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.capability import CAP_SYS_RESOURCE, capget
from woodfrog.kernel.netlink.sock_diag import TCP_CLOSE, TCP_LISTEN
from woodfrog.resources.files.message_queue import MessageQueueFile
from woodfrog.resources.files.regular import RegularFile
from woodfrog.resources.files.unix_socket import UnixSocketFile
from woodfrog.resources.posix_queues import Message, PosixQueue

__all__ = ["attack"]  # the fixture
pytestmark = needs("root")


def unix_socket(**fields: object) -> UnixSocketFile:
    usual: dict[str, object] = {
        "id": ID,
        "flags": 2,
        "type": socket.SOCK_DGRAM,
        "state": TCP_CLOSE,
        "inode": 1,
        "pair": 0,
        "name": b"\0hostile",
        "name_mode": 0,
        "name_owner": (0, 0),
        "accepted": False,
        "peer_name": b"",
        "backlog": 0,
        "shutdown": 0,
        "queue": [],
        "takes_more": True,
        "reset": False,
        "broken": False,
        "options": [],
    }
    return UnixSocketFile(**usual | fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"queue": [b"one", b"two"], "senders": [b"/work/x"]}, "another number of senders"),
        ({"queue": [b"one"], "urgent": 3}, "urgent data behind its data"),
        ({"queue": [b"one"], "urgent": -2}, "urgent data behind its data"),
        (
            {"type": socket.SOCK_STREAM, "state": TCP_LISTEN, "pending": [77]},
            "waited for by one that the image lacks",
        ),
    ],
)
def test_no_impossible_unix_sockets(attack: Attack, fields: dict[str, object], said: str) -> None:
    assert said in attack.refusal(unix_socket(**fields))


def test_no_unix_socket_displaces_the_file_of_another(attack: Attack) -> None:
    """Paths that are bound for a moment, or that nobody finds any more, are none of those there."""
    mine = attack.bundle.work / "mine"
    mine.write_text("a file")
    receiver = unix_socket(queue=[b"one"], senders=[b"/work/mine"])
    unlinked = unix_socket(id=ID + 1, name=b"/work/mine")

    attack.woodfrog.restore(attack.bundle, attack.hostile(receiver, unlinked)).delete()

    assert mine.read_text() == "a file"


@pytest.mark.parametrize(
    "fields",
    [
        {"name": b"/work/mine"},
        {"name": b"mine", "name_directory": b"/work"},
        {"name": b"/work/new", "name_alias": b"/work/mine"},
    ],
)
def test_no_bound_socket_displaces_another_file(attack: Attack, fields: dict[str, object]) -> None:
    mine = attack.bundle.work / "mine"
    mine.write_text("a file")

    assert "is no socket" in attack.refusal(unix_socket(name_mode=0o140755, **fields))
    assert mine.read_text() == "a file"


@pytest.mark.parametrize(
    ("messages", "longest"),
    [([Message(priority=0, data=b"")] * 3, 8), ([Message(priority=0, data=b"too long")], 4)],
)
def test_no_queues_with_more_than_they_hold(
    attack: Attack, messages: list[Message], longest: int
) -> None:
    queue = PosixQueue(
        name=b"queue", mode=0o600, uid=0, gid=0, most=2, longest=longest, messages=messages
    )
    unlinked = MessageQueueFile(id=ID, flags=2, name=b"queue", queue=1, unlinked=queue)

    assert "more than it can hold" in attack.refusal(queue)
    assert "more than it can hold" in attack.refusal(unlinked)


def test_no_hidden_files_that_it_may_not_open(attack: Attack) -> None:
    attack.leave_secret(0o600)
    hidden = RegularFile(
        id=ID,
        flags=os.O_RDONLY,
        path=b"/work/secret",
        position=0,
        file_kind=stat.S_IFREG,
        device=0,
        covered=True,
    )

    assert "ermission denied" in attack.refusal(hidden)


def test_no_descriptor_of_stubs_is_left_where_there_is_little_room(attack: Attack) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if capget(HERE)[0] >> CAP_SYS_RESOURCE & 1:
        most = int(Path("/proc/sys/fs/nr_open").read_text())
    own = attack.process.descriptors
    numbers = {one.number for one in own} | {*range(700, most, 500), most - 1}
    descriptors = [msgspec.structs.replace(own[0], number=number) for number in sorted(numbers)]
    with Reader(str(attack.image)) as reader:
        file = next(one for one in reader.records(RECORDS) if isinstance(one, RegularFile))
    files = [msgspec.structs.replace(file, id=ID + number) for number in range(1500)]
    image = attack.hostile(*files, descriptors=descriptors)

    restored = attack.woodfrog.restore(attack.bundle, image)

    assert {int(name) for name in os.listdir(f"/proc/{restored.init}/fd")} <= numbers
    restored.kill()
