"""The multicast groups that a socket is a member of (ip(7), ipv6(7), RFC 3678)."""

import errno
import socket
import struct
from collections.abc import Iterable, Iterator

import msgspec

from woodfrog.errors import ImageError
from woodfrog.image.record import Part
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.remote.program import Program
from woodfrog.resources.files.inet import End

_MCAST_JOIN_GROUP, _MCAST_BLOCK_SOURCE, _MCAST_JOIN_SOURCE_GROUP = 42, 43, 46
_MCAST_MSFILTER = 48
_SIOCGIFINDEX = 0x8933
_NAME_BYTES, _INTERFACE_REQUEST_BYTES = 16, 40
_ADDRESS_BYTES = 128  # sockaddr_storage
_HEAD = struct.Struct("<I4x128sII")  # struct group_filter, up to its sources
_MOST_SOURCES = 64
_INCLUDE = 1


class Membership(Part, frozen=True):
    """A group, the device it is joined on, and whose packets alone are taken, or are not."""

    group: bytes
    device: bytes
    only: bool
    sources: list[bytes]


class _Joined(msgspec.Struct, frozen=True):
    device: bytes
    number: int
    group: bytes


def collect(one: socket.socket, pid: int) -> list[Membership]:
    """Ask a socket about every group that is joined in the network namespace of a process."""
    size = 4 if one.family == socket.AF_INET else 16
    found = []
    for joined in _joined(pid):
        if len(joined.group) != size:
            continue
        answer = bytearray(_HEAD.size + _MOST_SOURCES * _ADDRESS_BYTES)
        group = _storage(joined.group)
        _HEAD.pack_into(answer, 0, joined.number, group, 0, _MOST_SOURCES)
        length = bytearray(len(answer).to_bytes(4, "little"))
        level = _level(joined.group)
        try:
            HERE.call(SYS.GETSOCKOPT, one.fileno(), level, _MCAST_MSFILTER, answer, length)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                continue  # it is another socket's
            raise
        _, _, mode, count = _HEAD.unpack_from(answer)
        at = 4 if size == 4 else 8
        starts = (_HEAD.size + number * _ADDRESS_BYTES + at for number in range(count))
        sources = [bytes(answer[start : start + size]) for start in starts]
        found.append(
            Membership(
                group=joined.group, device=joined.device, only=mode == _INCLUDE, sources=sources
            )
        )
    return found


def _joined(pid: int) -> Iterator[_Joined]:
    device, number = b"", 0
    with open(f"/proc/{pid}/net/igmp", "rb") as file:
        for line in file.read().splitlines()[1:]:
            fields = line.split()
            if not line.startswith(b"\t"):
                number, device = int(fields[0]), fields[1]
            else:
                yield _Joined(device, number, int(fields[0], 16).to_bytes(4, "little"))
    try:
        with open(f"/proc/{pid}/net/igmp6", "rb") as file:
            for line in file.read().splitlines():
                interface, name, group = line.split()[:3]
                yield _Joined(name, int(interface), bytes.fromhex(group.decode()))
    except FileNotFoundError:
        pass  # no IPv6


def _storage(address: bytes) -> bytes:
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    return End(address, 0).packed(family).ljust(_ADDRESS_BYTES, b"\0")


def _level(group: bytes) -> int:
    return socket.IPPROTO_IP if len(group) == 4 else socket.IPPROTO_IPV6


def restore(program: Program, fd: int, memberships: Iterable[Membership]) -> None:
    """Join recorded groups."""
    for one in memberships:
        if len(one.group) not in (4, 16) or any(len(s) != len(one.group) for s in one.sources):
            raise ImageError("the image has an impossible multicast group")
        request = program.address_of(
            one.device[: _NAME_BYTES - 1].ljust(_INTERFACE_REQUEST_BYTES, b"\0")
        )
        program.call(SYS.IOCTL, fd, _SIOCGIFINDEX, request)
        index = program.load(request + _NAME_BYTES)
        if not (one.only and one.sources):
            _set(program, fd, one, index, _MCAST_JOIN_GROUP)
        for source in one.sources:
            name = _MCAST_JOIN_SOURCE_GROUP if one.only else _MCAST_BLOCK_SOURCE
            _set(program, fd, one, index, name, _storage(source))


def _set(
    program: Program, fd: int, one: Membership, index: int, name: int, source: bytes = b""
) -> None:
    # struct group_req, group_source_req: the device's number, and addresses from the eighth byte.
    request = bytes(8) + _storage(one.group) + source
    address = program.address_of(request)
    program.store(address, index)
    program.call(SYS.SETSOCKOPT, fd, _level(one.group), name, address, len(request))
