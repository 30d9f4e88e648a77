"""What sock_diag(7) knows of packet(7) sockets (linux/packet_diag.h)."""

import socket
import struct

import msgspec

from woodfrog.kernel.netlink.messages import attributes_of
from woodfrog.kernel.netlink.sock_diag import dump

_SHOW = 0x01 | 0x02 | 0x04 | 0x08  # info, memberships, rings, fanout
_INFO, _MCLIST, _RX_RING, _TX_RING, _FANOUT = 0, 1, 2, 3, 4
_MEMBERSHIP = struct.Struct("<IIHH32s")
_RING = struct.Struct("<7I")


class PacketMembership(msgspec.Struct, frozen=True):
    """What a socket has a device do: `kind` is PACKET_MR_…; so many times."""

    device: int
    times: int
    kind: int
    address: bytes


class PacketRing(msgspec.Struct, frozen=True):
    """A ring, in blocks of frames; the last three are those of TPACKET_V3."""

    block_size: int
    blocks: int
    frame_size: int
    frames: int
    timeout_ms: int
    private_bytes: int
    features: int


class PacketInfo(msgspec.Struct, frozen=True):
    """One AF_PACKET socket; `protocol` is an EtherType, `device` 0 for all of them."""

    protocol: int
    device: int
    copy_threshold: int
    memberships: list[PacketMembership]
    receiving: PacketRing | None
    sending: PacketRing | None
    in_fanout: bool


def packet_sockets(diag: socket.socket) -> dict[int, PacketInfo]:
    """Return the packet sockets in the network namespace of a sock_diag socket, by inode.

    Raises FileNotFoundError if the kernel doesn't tell (CONFIG_PACKET_DIAG).
    """
    found = {}
    request = struct.pack("<BBHIIII", socket.AF_PACKET, 0, 0, 0, _SHOW, 0, 0)
    for answer in dump(diag, request):
        protocol, inode = struct.unpack_from("<HI", answer, 2)
        attributes = attributes_of(answer[16:])
        device, _, _, threshold = struct.unpack_from("<i3I", attributes[_INFO])
        found[inode] = PacketInfo(
            protocol=protocol,
            device=device,
            copy_threshold=threshold,
            memberships=[
                PacketMembership(device, times, kind, address[:length])
                for device, times, kind, length, address in _MEMBERSHIP.iter_unpack(
                    attributes.get(_MCLIST, b"")
                )
            ],
            receiving=_ring(attributes.get(_RX_RING)),
            sending=_ring(attributes.get(_TX_RING)),
            in_fanout=_FANOUT in attributes,
        )
    return found


def _ring(attribute: bytes | memoryview | None) -> PacketRing | None:
    return PacketRing(*_RING.unpack(attribute)) if attribute else None
