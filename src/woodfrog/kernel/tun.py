"""/dev/net/tun: network devices whose wire is a descriptor (linux/if_tun.h)."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

import msgspec

from woodfrog.kernel.netlink.messages import answers, attribute, attributes_of, message, socket_at

DEVICE = os.makedev(10, 200)

TUNSETIFF, TUNSETPERSIST, TUNSETOFFLOAD = 0x400454CA, 0x400454CB, 0x400454D0
TUNSETSNDBUF, TUNSETVNETHDRSZ, TUNSETQUEUE = 0x400454D4, 0x400454D8, 0x400454D9
TUNSETVNETLE = 0x400454DC
_TUNGETIFF, _TUNGETSNDBUF, _TUNGETVNETHDRSZ = 0x800454D2, 0x800454D3, 0x800454D7
_TUNGETVNETLE, _TUNGETDEVNETNS = 0x800454DD, 0x54E3

IFF_TUN, IFF_TAP, IFF_NAPI, IFF_NAPI_FRAGS = 0x1, 0x2, 0x10, 0x20
IFF_NO_CARRIER, IFF_MULTI_QUEUE, IFF_DETACH_QUEUE, IFF_PERSIST = 0x40, 0x100, 0x400, 0x800
# Both are one bit: TUNGETIFF shows it set for any file without a filter.
IFF_NO_PI = IFF_NOFILTER = 0x1000
IFF_VNET_HDR = 0x4000
KEPT_FLAGS = IFF_NAPI | IFF_NAPI_FRAGS | IFF_NO_CARRIER | IFF_MULTI_QUEUE | IFF_VNET_HDR

_RTM_GETLINK = 18
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_DATA, _IFLA_TUN_PI = 3, 18, 2, 4
_SIOCETHTOOL = 0x8946
_ETHTOOL_GSSET_INFO, _ETHTOOL_GSTRINGS, _ETHTOOL_GFEATURES = 0x37, 0x1B, 0x3A
_ETH_SS_FEATURES, _STRING_BYTES = 4, 32
# What a reader of the device can do, by the names of the device's features: TUN_F_….
_OFFLOADS = {
    b"tx-checksum-ip-generic": 0x01,
    b"tx-tcp-segmentation": 0x02,
    b"tx-tcp6-segmentation": 0x04,
    b"tx-tcp-ecn-segmentation": 0x08,
    b"tx-udp-segmentation": 0x20 | 0x40,
}


class Attached(msgspec.Struct, frozen=True):
    """The device that a file is a queue of; `has_filter` if it was given one."""

    name: bytes
    flags: int
    has_filter: bool
    send_buffer: int
    header_bytes: int
    little_endian: bool
    offload: int


def attached(fd: int) -> Attached | None:
    """Return what a file of /dev/net/tun is attached to, if it is."""
    request = bytearray(40)
    try:
        fcntl.ioctl(fd, _TUNGETIFF, request)
    except OSError:
        return None
    name = bytes(request[:16]).partition(b"\0")[0]
    (flags,) = struct.unpack_from("<H", request, 16)
    namespace = fcntl.ioctl(fd, _TUNGETDEVNETNS)
    try:
        with socket_at(namespace, socket.AF_NETLINK, socket.SOCK_RAW, 0) as ask:
            has_information = _has_packet_information(ask, name)
        with socket_at(namespace, socket.AF_INET, socket.SOCK_DGRAM, 0) as ask:
            offload = _offload(ask.fileno(), name)
    finally:
        os.close(namespace)
    kept = flags & (KEPT_FLAGS | IFF_TUN | IFF_TAP | IFF_DETACH_QUEUE | IFF_PERSIST)
    return Attached(
        name=name,
        flags=kept | (0 if has_information else IFF_NO_PI),
        has_filter=not flags & IFF_NOFILTER,
        send_buffer=_number(fd, _TUNGETSNDBUF),
        header_bytes=_number(fd, _TUNGETVNETHDRSZ),
        little_endian=bool(_number(fd, _TUNGETVNETLE)),
        offload=offload,
    )


def _number(fd: int, request: int) -> int:
    answer = bytearray(4)
    fcntl.ioctl(fd, request, answer)
    return int.from_bytes(answer, "little", signed=True)


def _has_packet_information(ask: socket.socket, name: bytes) -> bool:
    """Tell whether each packet has four bytes before it, which rtnetlink alone tells."""
    ask.send(message(_RTM_GETLINK, 4, bytes(16) + attribute(_IFLA_IFNAME, name + b"\0")))
    for _, payload in answers(ask, "tun"):
        link = attributes_of(payload[16:])
        info = attributes_of(memoryview(link.get(_IFLA_LINKINFO, b"")))
        data = attributes_of(memoryview(info.get(_IFLA_INFO_DATA, b"")))
        return any(data.get(_IFLA_TUN_PI, b""))
    return False


def _offload(fd: int, name: bytes) -> int:
    """Return what TUNSETOFFLOAD was given, by the features that the device has by it."""
    count = struct.unpack_from(
        "<I", _ethtool(fd, name, struct.pack("<IIQI", _ETHTOOL_GSSET_INFO, 0, 1 << 4, 0)), 16
    )[0]
    head = struct.pack("<3I", _ETHTOOL_GSTRINGS, _ETH_SS_FEATURES, count)
    strings = _ethtool(fd, name, head + bytes(count * _STRING_BYTES))[len(head) :]
    blocks = (count + 31) // 32
    head = struct.pack("<2I", _ETHTOOL_GFEATURES, blocks)
    features = _ethtool(fd, name, head + bytes(blocks * 16))[len(head) :]
    found = 0
    for number in range(count):
        feature = strings[number * _STRING_BYTES :][:_STRING_BYTES].partition(b"\0")[0]
        active = struct.unpack_from("<I", features, number // 32 * 16 + 8)[0]
        if active >> number % 32 & 1:
            found |= _OFFLOADS.get(feature, 0)
    return found


def _ethtool(fd: int, name: bytes, request: bytes) -> bytes:
    import ctypes

    buffer = ctypes.create_string_buffer(request, len(request))
    fcntl.ioctl(fd, _SIOCETHTOOL, struct.pack("<16sQ16x", name, ctypes.addressof(buffer)))
    return buffer.raw
