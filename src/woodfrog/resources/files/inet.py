"""What internet sockets have in common: addresses, names, and packets in a peer's place."""

import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from woodfrog.errors import ImageError
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.namespaces import CLONE_NEWNET, setns
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.files.socket_options import Option, missing_device

# What comes from a peer's place, while all else that comes for a connection may be dropped.
MARK = 0x776F6F64

_MAPPED = bytes(10) + b"\xff\xff"
_ADDRESS_BYTES: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 16}
_SO_MARK = 36
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78
_SIOCGSKNS = 0x894C
_SO_BINDTODEVICE, _SO_BINDTOIFINDEX = 25, 62
_IPV6_JOIN_GROUP = 20
_MULTICAST_6 = 0xFF
# Addresses of the loopback device, by how long they are.
LOOPBACK = {4: bytes((127, 0, 0, 1)), 16: bytes(15) + b"\1"}
_LOOPBACK_DEVICE = 1  # in every network namespace
_ICMP = (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)
_CONNECTED = 1  # TCP_ESTABLISHED


class End(NamedTuple):
    """One end of a connection."""

    address: bytes
    port: int

    def packed(self, family: int) -> bytes:
        """Return a sockaddr_in or sockaddr_in6."""
        head = struct.pack("<H", family) + self.port.to_bytes(2, "big")
        if family == socket.AF_INET:
            return head + self.address + bytes(8)
        return head + bytes(4) + self.address + bytes(4)

    def unmapped(self) -> "End":
        """Return an IPv4 address that stands in an IPv6 one as such."""
        if len(self.address) == 16 and self.address.startswith(_MAPPED):
            return End(self.address[12:], self.port)
        return self


def check(family: int, *ends: End) -> None:
    """Check what an image says of a socket: another family might be one that nobody may have."""
    size = _ADDRESS_BYTES.get(family)
    if any(len(one.address) != size or not 0 <= one.port < 1 << 16 for one in ends):
        raise ImageError("the image has an impossible internet socket")


def own_address(address: bytes) -> set[bytes]:
    """Return an address as that of a machine, if it is one: not of all, and not loopback."""
    plain = End(address, 0).unmapped().address
    return {plain} if any(plain) and not is_loopback(plain) and plain[0] & 0xF0 != 0xE0 else set()


def move(address: bytes, moves: Mapping[bytes, bytes]) -> bytes:
    """Return where an address has moved to."""
    plain = End(address, 0).unmapped().address
    return address[: len(address) - len(plain)] + moves.get(plain, plain)


def end(name: tuple[str, int]) -> End:
    """Return what getsockname(2) and its kin have said; an interface after "%" is left out."""
    host, port = name[:2]
    text = host.partition("%")[0]
    return End(socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text), port)


def peer_without_port(one: socket.socket, file: OpenFile, init: int) -> End | None:
    """Return what a raw or ICMP socket is connected to, where getpeername(2) doesn't tell."""
    name = "raw" if one.type == socket.SOCK_RAW else "icmp"
    if one.type != socket.SOCK_RAW and one.proto not in _ICMP:
        return None
    name += "6" if one.family == socket.AF_INET6 else ""
    for pid in (init, file.pid):
        with open(f"/proc/{pid}/net/{name}", encoding="ascii") as table:
            for line in table.readlines()[1:]:
                words = line.split()
                if words[9] == str(file.stat.st_ino) and int(words[3], 16) == _CONNECTED:
                    host, _, port = words[2].partition(":")
                    numbers = [int(host[at : at + 8], 16) for at in range(0, len(host), 8)]
                    return End(struct.pack(f"={len(numbers)}I", *numbers), int(port, 16))
    return None


def is_loopback(address: bytes) -> bool:
    """Tell whether an address never leaves its network namespace."""
    four = End(address, 0).unmapped().address
    return four[0] == 127 if len(four) == 4 else address == bytes(15) + b"\1"


def protocol_of(file: OpenFile) -> tuple[int, int] | None:
    """Return type and protocol of an internet socket; None for all else."""
    if not stat.S_ISSOCK(file.stat.st_mode):
        return None
    with socket.socket(fileno=os.dup(file.descriptor)) as one:
        if one.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        return one.type, one.proto


def bind(
    making: Making, fd: int, local: End, family: int, options: Iterable[Option]
) -> tuple[int, bool]:
    """Give a socket its name, also one with an address that the new container doesn't have (yet).

    Such a socket hears nothing until the address is there. In a network namespace that others have,
    too, somebody may have the port. Returns the socket, and whether it has its name.
    """
    program = making.program
    if missing_device(making, options):
        return fd, False  # without it, the socket would hear what it never did
    level, name = (
        (socket.IPPROTO_IP, _IP_FREEBIND)
        if family == socket.AF_INET
        else (socket.IPPROTO_IPV6, _IPV6_FREEBIND)
    )
    free = any((option.level, option.name) == (level, name) for option in options)
    program.call(SYS.SETSOCKOPT, fd, level, name, (1).to_bytes(4, "little"), 4)
    address = local.packed(family)
    bound = program.call(SYS.BIND, fd, address, len(address))
    if not making.new_network:
        program.may_fail(bound)
    if not free:
        program.call(SYS.SETSOCKOPT, fd, level, name, bytes(4), 4)
    if making.new_network:
        return fd, True
    number = making.settle(fd)
    return number, program[bound] == 0


def missing_address(descriptor: int, local: End, family: int) -> str:
    """Say so if a socket's address is none of those in its network namespace, or its port taken."""
    with socket.socket(fileno=os.dup(descriptor)) as one:
        if local.port and one.type != socket.SOCK_RAW and not one.getsockname()[1]:
            return f"nothing reaches port {local.port}: somebody has it here"
        device = one.getsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX)
    if not any(local.address):
        return ""
    ours = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    theirs = fcntl.ioctl(descriptor, _SIOCGSKNS)
    try:
        setns(HERE, theirs, CLONE_NEWNET)
        try:
            probe = socket.socket(family, socket.SOCK_DGRAM)
        finally:
            setns(HERE, ours, CLONE_NEWNET)
    finally:
        os.close(ours)
        os.close(theirs)
    name = socket.inet_ntop(family, local.address)
    with probe:
        try:
            probe.bind((name, 0, 0, device) if family == socket.AF_INET6 else (name, 0))
        except OSError:
            return f"nothing reaches port {local.port} of {name}: the container has no such address"
    return ""


def is_here(making: Making, address: bytes) -> bool:
    """Tell whether an address is one of the container's own, or never leaves it."""
    return bool(address) and (is_loopback(address) or making.has_address(address))


def arrive(
    making: Making, packet: bytes, way: bytes, *, device: bytes = b"", target: bytes = b""
) -> int | None:
    """Have an IP packet arrive by one of the container's own addresses, whoever sent it.

    `way` is that address, whatever `target` the packet's head names; if it is known to be one of a
    `device`, that is named. Returns the result of the call that sends it. By all others it would go
    out into the network, by a right that the container may lack: it is lost.
    """
    if not (device or is_here(making, way)):
        return None
    program = making.program
    family = socket.AF_INET if len(way) == 4 else socket.AF_INET6
    raw = program.call(SYS.SOCKET, family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    mark = MARK.to_bytes(4, "little")
    program.call(SYS.SETSOCKOPT, raw, socket.SOL_SOCKET, _SO_MARK, mark, 4)
    if device:
        # A link-local address is another one at each device.
        program.call(SYS.SETSOCKOPT, raw, socket.SOL_SOCKET, _SO_BINDTODEVICE, device, len(device))
    if len(target) == 16 and target[0] == _MULTICAST_6:
        # It comes by the loopback device, and only if that is a member of the group.
        group = target + _LOOPBACK_DEVICE.to_bytes(4, "little")
        program.may_fail(
            program.call(SYS.SETSOCKOPT, raw, socket.IPPROTO_IPV6, _IPV6_JOIN_GROUP, group, 20)
        )
    address = End(way, 0).packed(family)
    sent = program.call(SYS.SENDTO, raw, packet, len(packet), 0, address, len(address))
    syscalls.close(program, raw)
    return sent


def packet(
    protocol: int,
    source: bytes,
    target: bytes,
    segment: bytes,
    checksum_at: int | None,
    ttl: int = 64,
    traffic: int = 0,
) -> bytes:
    """Return an IP packet; the checksum of what is in it goes to that offset, if it has none.

    `traffic` is the type of service, or the traffic class (8 bits) and flow label (20).
    """
    if checksum_at is not None:
        pseudo = source + target + struct.pack(">II", len(segment), protocol)
        if protocol == socket.IPPROTO_ICMP:
            pseudo = b""
        checksum = _checksum(pseudo + segment)
        segment = segment[:checksum_at] + checksum + segment[checksum_at + 2 :]
    if len(source) == 4:
        # The kernel fills in the header's own checksum.
        head = struct.pack(">2B3H2BH", 0x45, traffic, 20 + len(segment), 0, 0, ttl, protocol, 0)
    else:
        head = struct.pack(">IH2B", 6 << 28 | traffic, len(segment), protocol, ttl)
    return head + source + target + segment


def _checksum(data: bytes) -> bytes:
    """Return the internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    # Zero would mean "none" in UDP; both mean the same number.
    return ((~total & 0xFFFF) or 0xFFFF).to_bytes(2, "big")
