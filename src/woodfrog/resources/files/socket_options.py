"""Socket options (socket(7), ip(7), ipv6(7), tcp(7), udp(7)) that programs expect to find again."""

import errno
import socket
from collections.abc import Iterable
from typing import NamedTuple

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import Caller

_CAP_NET_ADMIN, CAP_NET_RAW = 1 << 12, 1 << 13
SO_RCVBUFFORCE, SO_SNDBUFFORCE = 33, 32
# Which of the two buffers were set by the program, and so aren't tuned by the kernel.
SO_BUF_LOCK = 72
# Beyond what any system's limits let programs have; and no more than the kernel's own limit.
_LARGEST_BUFFER = 1 << 28
_FORCED = {socket.SO_RCVBUF: SO_RCVBUFFORCE, socket.SO_SNDBUF: SO_SNDBUFFORCE}
_SOL_RAW = 255
_ALLOWED_CONGESTION_CONTROL = "/proc/sys/net/ipv4/tcp_allowed_congestion_control"
# SO_PRIORITY up to this needs no right.
_HIGHEST_PRIORITY = 6


class _Known(NamedTuple):
    """An option: level, name, bytes of its value; `early` if it matters to bind(2).

    `rights` are the capabilities one of which setting it needs.
    """

    level: int
    name: int
    size: int = 4
    early: bool = False
    rights: int = 0


def _table(level: int, *names: int) -> tuple[_Known, ...]:
    return tuple(_Known(level, name) for name in names)


# The numbers without names here are those of asm-generic/socket.h, linux/in.h and linux/in6.h.
_GENERAL = (
    _Known(socket.SOL_SOCKET, socket.SO_REUSEADDR, early=True),
    *_table(socket.SOL_SOCKET, socket.SO_KEEPALIVE, socket.SO_BROADCAST, socket.SO_OOBINLINE),
    *_table(socket.SOL_SOCKET, socket.SO_PRIORITY, socket.SO_RCVLOWAT),
    _Known(socket.SOL_SOCKET, socket.SO_LINGER, 8),
    _Known(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16),
    _Known(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16),
    # SO_TIMESTAMP, SO_TIMESTAMPNS, SO_TIMESTAMPING, SO_RXQ_OVFL
    *_table(socket.SOL_SOCKET, 29, 35, 37, 40),
    *_table(socket.SOL_SOCKET, socket.SO_RCVBUF, socket.SO_SNDBUF),
)
_UNIX = _table(socket.SOL_SOCKET, socket.SO_PASSCRED, 76)  # SO_PASSPIDFD
_INET = (
    _Known(socket.SOL_SOCKET, 15, early=True),  # SO_REUSEPORT
    _Known(socket.SOL_SOCKET, 25, 16, early=True),  # SO_BINDTODEVICE
    _Known(socket.SOL_SOCKET, 36, rights=_CAP_NET_ADMIN | CAP_NET_RAW),  # SO_MARK
    _Known(socket.SOL_SOCKET, 60),  # SO_ZEROCOPY
)
_IP = (
    _Known(socket.IPPROTO_IP, 15, early=True),  # IP_FREEBIND
    _Known(socket.IPPROTO_IP, 19, early=True, rights=_CAP_NET_ADMIN | CAP_NET_RAW),  # …TRANSPARENT
    _Known(socket.IPPROTO_IP, 24, early=True),  # IP_BIND_ADDRESS_NO_PORT
    # IP_TOS, IP_TTL, IP_RECVOPTS, IP_RETOPTS, IP_PKTINFO, IP_MTU_DISCOVER, IP_RECVERR, IP_RECVTTL,
    # IP_RECVTOS, IP_RECVORIGDSTADDR, IP_MINTTL, IP_RECVFRAGSIZE
    *_table(socket.IPPROTO_IP, 1, 2, 6, 7, 8, 10, 11, 12, 13, 20, 21, 25),
)
_IP_MULTICAST = (
    # IP_MULTICAST_IF, IP_MULTICAST_TTL, IP_MULTICAST_LOOP, IP_MULTICAST_ALL, IP_UNICAST_IF
    *_table(socket.IPPROTO_IP, 32, 33, 34, 49, 50),
)
_IPV6 = (
    _Known(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, early=True),
    _Known(socket.IPPROTO_IPV6, 78, early=True),  # IPV6_FREEBIND
    # IPV6_TRANSPARENT
    _Known(socket.IPPROTO_IPV6, 75, early=True, rights=_CAP_NET_ADMIN | CAP_NET_RAW),
    # IPV6_UNICAST_HOPS, IPV6_MTU_DISCOVER, IPV6_RECVERR
    *_table(socket.IPPROTO_IPV6, 16, 23, 25),
    # IPV6_RECVPKTINFO, …_RECVHOPLIMIT, …_RECVHOPOPTS, …_RECVRTHDR, …_RECVDSTOPTS, …_RECVPATHMTU,
    # …_DONTFRAG, …_RECVTCLASS, …_TCLASS, …_AUTOFLOWLABEL, …_MINHOPCOUNT, …_RECVORIGDSTADDR,
    # …_RECVFRAGSIZE
    *_table(socket.IPPROTO_IPV6, 49, 51, 53, 56, 58, 60, 62, 66, 67, 70, 73, 74, 77),
)
# IPV6_MULTICAST_IF, IPV6_MULTICAST_HOPS, IPV6_MULTICAST_LOOP, IPV6_MULTICAST_ALL
_IPV6_MULTICAST = _table(socket.IPPROTO_IPV6, 17, 18, 19, 29)
_TCP = (
    *_table(socket.IPPROTO_TCP, socket.TCP_NODELAY, socket.TCP_CORK, socket.TCP_KEEPIDLE),
    *_table(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_SYNCNT),
    *_table(socket.IPPROTO_TCP, socket.TCP_LINGER2, socket.TCP_DEFER_ACCEPT),
    *_table(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, socket.TCP_NOTSENT_LOWAT),
    _Known(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16),
    # TCP_THIN_LINEAR_TIMEOUTS, TCP_SAVE_SYN, TCP_FASTOPEN_CONNECT, TCP_INQ
    *_table(socket.IPPROTO_TCP, 16, 27, 30, 36),
)
# UDP_CORK, UDP_NO_CHECK6_TX, UDP_NO_CHECK6_RX, UDP_SEGMENT, UDP_GRO
_UDP = (_Known(socket.SOL_SOCKET, 11), *_table(socket.IPPROTO_UDP, 1, 101, 102, 103, 104))
_RAW = (
    _Known(socket.IPPROTO_IP, 3),  # IP_HDRINCL
    _Known(socket.IPPROTO_IP, 22),  # IP_NODEFRAG
    _Known(_SOL_RAW, 1),  # ICMP_FILTER
    _Known(socket.IPPROTO_IPV6, 36),  # IPV6_HDRINCL
    _Known(socket.IPPROTO_ICMPV6, 1, 32),  # ICMPV6_FILTER
)


SOL_NETLINK = 270
# NETLINK_PKTINFO, …_BROADCAST_ERROR, …_NO_ENOBUFS, …_CAP_ACK, …_EXT_ACK, …_GET_STRICT_CHK
_NETLINK = _table(SOL_NETLINK, 3, 4, 5, 10, 11, 12)


class Option(Part, frozen=True):
    """One option whose value is not that of a new socket."""

    level: int
    name: int
    value: bytes


def _known(family: int, kind: int, protocol: int) -> list[_Known]:
    known = list(_GENERAL)
    if family == socket.AF_UNIX:
        return [*known, *_UNIX]
    if family == socket.AF_NETLINK:
        return [*known, *_NETLINK]
    datagrams = kind != socket.SOCK_STREAM
    known += _INET + _IP + (_IP_MULTICAST if datagrams else ())
    if family == socket.AF_INET6:
        known += _IPV6 + (_IPV6_MULTICAST if datagrams else ())
    if kind == socket.SOCK_RAW:
        known += _RAW
    elif protocol in (0, socket.IPPROTO_TCP) and kind == socket.SOCK_STREAM:
        known += _TCP
    elif protocol in (0, socket.IPPROTO_UDP):
        known += _UDP
    return known


def collect(one: socket.socket) -> list[Option]:
    """Return the options of a socket that differ from those of a new one."""
    found = []
    with socket.socket(one.family, one.type, one.proto) as fresh:
        for known in _known(one.family, one.type, one.proto):
            value = _value(one, known)
            if value is not None and value != _value(fresh, known):
                found.append(Option(level=known.level, name=known.name, value=value))
    if any(option.level == socket.SOL_SOCKET and option.name in _FORCED for option in found):
        # To be set last: setting a size locks it.
        value = one.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, 4)
        found.append(Option(level=socket.SOL_SOCKET, name=SO_BUF_LOCK, value=value))
    return found


def _value(one: socket.socket, known: _Known) -> bytes | None:
    """Return an option's value; None if this kernel, or this kind of socket, doesn't have it."""
    try:
        return one.getsockopt(known.level, known.name, known.size)
    except OSError as error:
        if error.errno in (errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ENOTCONN, errno.EINVAL):
            return None
        raise


def refuse_wider(
    options: Iterable[Option], family: int, kind: int, protocol: int, bounding: int
) -> None:
    """Refuse an image's options that nobody knows, or that need a right the container lacks."""
    known = {(one.level, one.name): one for one in _known(family, kind, protocol)}
    known[socket.SOL_SOCKET, SO_BUF_LOCK] = _Known(socket.SOL_SOCKET, SO_BUF_LOCK)
    for option in options:
        what = f"socket option {option.name} of level {option.level}"
        one = known.get((option.level, option.name))
        if one is None or len(option.value) > one.size or _is_too_large(option):
            raise ImageError(f"the image has an impossible {what}")
        rights = one.rights
        if (option.level, option.name) == (socket.SOL_SOCKET, socket.SO_PRIORITY):
            value = int.from_bytes(option.value, "little")
            rights = _CAP_NET_ADMIN if value > _HIGHEST_PRIORITY else 0
        if (option.level, option.name) == (socket.IPPROTO_TCP, socket.TCP_CONGESTION):
            algorithm = option.value.partition(b"\0")[0]
            rights = 0 if algorithm in _allowed_congestion_control() else _CAP_NET_ADMIN
        if rights and not rights & bounding:
            raise UnsupportedResource(
                f"the image has {what}, which needs CAP_NET_ADMIN in the new container",
                hint="add it to process.capabilities.bounding in the bundle's config.json",
            )


def _allowed_congestion_control() -> list[bytes]:
    """Return the algorithms that need no right."""
    with open(_ALLOWED_CONGESTION_CONTROL, "rb") as file:
        return file.read().split()


def _is_too_large(option: Option) -> bool:
    is_buffer = option.level == socket.SOL_SOCKET and option.name in _FORCED
    return is_buffer and int.from_bytes(option.value, "little") > _LARGEST_BUFFER


def early(options: Iterable[Option], family: int, kind: int, protocol: int) -> list[Option]:
    """Return the options that must be set before the socket is bound."""
    first = {(one.level, one.name) for one in _known(family, kind, protocol) if one.early}
    return [option for option in options if (option.level, option.name) in first]


def late(options: Iterable[Option], family: int, kind: int, protocol: int) -> list[Option]:
    """Return those for the time after; SO_REUSEADDR is one of both, since bind(2) may need it."""
    first = early(options, family, kind, protocol)
    return [
        option
        for option in options
        if option not in first
        or (option.level, option.name) == (socket.SOL_SOCKET, socket.SO_REUSEADDR)
    ]


def restore(on: Caller, fd: int, options: Iterable[Option], *, force: bool) -> None:
    """Set recorded options; buffers past the limits for programs, if that may be (`force`)."""
    for option in options:
        name, value = _halved(option, force)
        on.call(SYS.SETSOCKOPT, fd, option.level, name, value, len(value))


def restore_here(one: socket.socket, option: Option) -> None:
    """Set one recorded option of a socket of ours."""
    one.setsockopt(option.level, *_halved(option, force=True))


def set_buffer(on: Caller, fd: int, name: int, size: int, *, force: bool) -> None:
    """Set SO_SNDBUF or SO_RCVBUF, past the limit for programs if that may be."""
    value = size.to_bytes(4, "little")
    on.call(SYS.SETSOCKOPT, fd, socket.SOL_SOCKET, _FORCED[name] if force else name, value, 4)


def _halved(option: Option, force: bool) -> tuple[int, bytes]:
    """Return name and value by which an option is set: the kernel doubles a buffer's size."""
    if option.level != socket.SOL_SOCKET or option.name not in _FORCED:
        return option.name, option.value
    half = int.from_bytes(option.value, "little") // 2
    return _FORCED[option.name] if force else option.name, half.to_bytes(4, "little")
