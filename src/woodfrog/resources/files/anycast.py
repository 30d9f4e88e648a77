"""The anycast addresses of IPv6 that a socket has (IPV6_JOIN_ANYCAST).

No call tells them; but who leaves one hears whether he had it.
"""

import errno
import socket
import struct
from collections.abc import Iterable, Iterator

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel import netdevice
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE, Caller
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.socket_option_table import CAP_NET_ADMIN

_JOIN, _LEAVE = 27, 28
_ADDRESS_BYTES = 16
_MOST_TIMES = 1 << 10


class Anycast(Part, frozen=True):
    """An address, the device that it is on, and how often the socket has joined it there."""

    address: bytes
    device: bytes
    times: int


def collect(one: socket.socket, pid: int) -> list[Anycast]:
    """Ask a socket about every address that is joined in the network namespace of a process."""
    if one.family != socket.AF_INET6:
        return []
    found = (
        Anycast(address=address, device=device, times=_times(one, number, address))
        for number, device, address in sorted(_joined(pid))
    )
    return [joined for joined in found if joined.times]


def _joined(pid: int) -> Iterator[tuple[int, bytes, bytes]]:
    try:
        with open(f"/proc/{pid}/net/anycast6", "rb") as file:
            for line in file.read().splitlines():
                number, device, address = line.split()[:3]
                yield int(number), device, bytes.fromhex(address.decode())
    except FileNotFoundError:
        pass  # no IPv6


def _times(one: socket.socket, device: int, address: bytes) -> int:
    """Count how often a socket has joined an address, by leaving it and joining it again."""
    # First once more: then nothing can keep it from joining again.
    try:
        _change(HERE, one.fileno(), _JOIN, device, address)
    except OSError as error:
        raise UnsupportedResource(
            f"may have the anycast address {socket.inet_ntop(one.family, address)}, which"
            f" cannot be joined any more: {error.strerror}"
        ) from error
    times = 0
    while _leaves(one.fileno(), device, address):
        times += 1
    for _ in range(times - 1):
        _change(HERE, one.fileno(), _JOIN, device, address)
    return times - 1


def _leaves(fd: int, device: int, address: bytes) -> bool:
    try:
        _change(HERE, fd, _LEAVE, device, address)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def _change(on: Caller, fd: int, how: int, device: int, address: bytes) -> int:
    request = struct.pack("<16si", address, device)  # struct ipv6_mreq
    return on.call(SYS.SETSOCKOPT, fd, socket.IPPROTO_IPV6, how, request, len(request))


def refuse_wider(joined: Iterable[Anycast], bounding: int) -> None:
    """Check addresses from an image, and that the new container may join such."""
    for one in joined:
        if len(one.address) != _ADDRESS_BYTES or not 0 < one.times <= _MOST_TIMES:
            raise ImageError("the image has an impossible anycast address")
        if not bounding & CAP_NET_ADMIN:
            raise UnsupportedResource(
                "the image has a socket with an anycast address, which needs CAP_NET_ADMIN in the"
                " new container",
                hint="add it to process.capabilities.bounding in the bundle's config.json",
            )


def restore(making: Making, fd: int, joined: Iterable[Anycast]) -> None:
    """Join addresses, where the new container has such a network."""
    for one in joined:
        number = making.device_number(one.device)
        for _ in range(one.times if number else 0):
            result = _change(making.program, fd, _JOIN, number, one.address)
            making.program.may_fail(result)


def missing(descriptor: int, joined: Iterable[Anycast]) -> str:
    """Return what the new container has no network for."""
    for one in joined:
        number = netdevice.number_of(descriptor, one.device)
        if not (number and _leaves(descriptor, number, one.address)):
            name = socket.inet_ntop(socket.AF_INET6, one.address)
            return f"a socket has not joined {name} (anycast): no such network is here"
        _change(HERE, descriptor, _JOIN, number, one.address)
    return ""
