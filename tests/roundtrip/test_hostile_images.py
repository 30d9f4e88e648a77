"""Images that no checkpoint makes: they ask for what the new container could not have itself."""

import os
import socket
import stat
from pathlib import Path

import pytest
from test_surroundings import WAIT, frozen, shell

from bundles import Bundle, bind
from containers import Woodfrog
from images import doctored
from needs import needs
from woodfrog.image.record import Record
from woodfrog.resources.deleted_files import DeletedFile
from woodfrog.resources.file_entry import Moment
from woodfrog.resources.files.deleted import OpenDeletedFile
from woodfrog.resources.files.inet_datagram import InetDatagramSocket
from woodfrog.resources.files.proc_file import ProcFile

pytestmark = needs("root")

ID = 1 << 20
_LACKED = ("CAP_DAC_OVERRIDE", "CAP_NET_RAW")


class Attack:
    """A container that was frozen, and whose image is changed."""

    def __init__(self, woodfrog: Woodfrog) -> None:
        self._woodfrog = woodfrog
        self.bundle: Bundle = shell(woodfrog, f": > /work/ready; {WAIT}")
        for capabilities in self.bundle.process["capabilities"].values():
            capabilities[:] = [one for one in capabilities if one not in _LACKED]
        container = woodfrog.run(self.bundle)
        container.wait_for("ready")
        self.image: Path = frozen(container)

    def refusal(self, *more: Record) -> str:
        """Return why an image with more records is refused."""
        image = doctored(self.image, self.image.with_name("hostile"), more=more)
        self.bundle.save()
        where = f"--bundle={self.bundle.directory}", f"--image-path={image}"
        self._woodfrog.names.append("attacked")
        done = self._woodfrog("restore", "--detach", *where, "attacked", status=None)
        assert done.status == 1, "it was restored"
        return done.stderr


@pytest.fixture
def attack(woodfrog: Woodfrog) -> Attack:
    return Attack(woodfrog)


def datagram_socket(family: int, kind: int, protocol: int) -> InetDatagramSocket:
    return InetDatagramSocket(
        id=ID,
        flags=2,
        family=family,
        type=kind,
        protocol=protocol,
        local=bytes(4),
        port=0,
        peer=b"",
        peer_port=0,
        queue=[],
        options=[],
        filter=None,
        memberships=[],
    )


@pytest.mark.parametrize(
    "kind",
    [
        (socket.AF_PACKET, socket.SOCK_RAW, 0x0300),
        (socket.AF_PACKET, socket.SOCK_DGRAM, socket.IPPROTO_UDP),
        (socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_TCP),
        (socket.AF_INET, 10, 0x0300),  # SOCK_PACKET
    ],
)
def test_no_sockets_that_hear_others(attack: Attack, kind: tuple[int, int, int]) -> None:
    assert "internet socket" in attack.refusal(datagram_socket(*kind))


def proc_file(point: bytes, pid: int, name: bytes) -> ProcFile:
    return ProcFile(id=ID, flags=0, point=point, pid=pid, name=name, position=0, ended=False)


@pytest.mark.parametrize("name", [b"../kallsyms", b"net/../environ", b"task/1/../../../kallsyms"])
def test_no_files_of_proc_but_those_of_processes(attack: Attack, name: bytes) -> None:
    assert "impossible process" in attack.refusal(proc_file(b"/proc", 1, name))


@pytest.mark.parametrize("point", [b"/host", b"/proc/../host"])
def test_no_processes_of_the_host(attack: Attack, point: bytes) -> None:
    attack.bundle.add_mount(bind("/proc", "/host"))

    assert "none of the container's own" in attack.refusal(proc_file(point, 1, b"status"))


@pytest.mark.parametrize(
    ("mode", "flags"), [(0o600, os.O_RDONLY), (0o644, os.O_RDWR), (0o644, os.O_WRONLY)]
)
def test_no_files_that_it_may_not_open(attack: Attack, mode: int, flags: int) -> None:
    secret = attack.bundle.work / "secret"
    secret.write_text("another's")
    os.chown(secret, 1234, 1234)
    secret.chmod(mode)
    linked = DeletedFile(
        id=ID,
        path=b"/work/other",
        link=b"/work/secret",
        unnamed=False,
        mode=stat.S_IFREG | 0o644,
        uid=0,
        gid=0,
        mtime=Moment(seconds=0, nanoseconds=0),
        device=0,
        target=b"",
        attributes=[],
        size=0,
        extents=[],
        store=0,
    )
    opened = OpenDeletedFile(id=ID + 1, flags=flags, deleted=ID, position=0, file_kind=stat.S_IFREG)

    assert "ermission denied" in attack.refusal(linked, opened)
