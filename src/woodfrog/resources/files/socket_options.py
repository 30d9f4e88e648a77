"""Socket options that programs expect to find again: those in socket_option_table.py."""

import errno
import fcntl
import os
import select
import socket
import termios
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel import netdevice
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE, Caller
from woodfrog.remote.program import Program
from woodfrog.resources.files import socket_option_table as table
from woodfrog.resources.files.making import Making
from woodfrog.resources.files.socket_option_table import CAP_NET_ADMIN, CAP_NET_RAW, Known

SO_RCVBUFFORCE, SO_SNDBUFFORCE = 33, 32
# Which of the two buffers were set by the program, and so aren't tuned by the kernel.
SO_BUF_LOCK = 72
_SO_ZEROCOPY = 60
# Beyond what any system's limits let programs have; and no more than the kernel's own limit.
_LARGEST_BUFFER = 1 << 28
_FORCED = {socket.SO_RCVBUF: SO_RCVBUFFORCE, socket.SO_SNDBUF: SO_SNDBUFFORCE}
_ALLOWED_CONGESTION_CONTROL = "/proc/sys/net/ipv4/tcp_allowed_congestion_control"
# TCP_MAXSEG takes these (TCP_MIN_MSS, MAX_TCP_WINDOW). Over the loopback device there are larger
# ones, and setting IP_OPTIONS before there is a way makes smaller ones.
_SMALLEST_SEGMENT, _LARGEST_SEGMENT = 88, 32767
# SO_PRIORITY up to this needs no right.
_HIGHEST_PRIORITY = 6
_ICMP = (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)
_CLOCK_MONOTONIC = 1
# More, socket.getsockopt doesn't take.
_MOST_OF_PYTHON = 1024
# Options in IP packets that need no right: end, padding, record route, the two source routes,
# router alert.
_PLAIN_IP_OPTIONS = frozenset((0, 1, 7, 131, 137, 148))


class Option(Part, frozen=True):
    """One option whose value is not that of a new socket.

    Where the kernel has the number of a network device, it is the device's name.
    """

    level: int
    name: int
    value: bytes

    @property
    def place(self) -> tuple[int, int]:
        """Return level and name."""
        return self.level, self.name


def collect(one: socket.socket, *, connected: bool = False) -> list[Option]:
    """Return the options of a socket that differ from those of a new one.

    And the sizes of the buffers of one that is `connected`, whose restore needs larger ones.
    """
    found = []
    for known, usual in _of_new_ones(one.family, one.type, one.proto):
        if known.unconnected and connected:
            continue
        value = _value(one, known)
        if connected and known.level == socket.SOL_SOCKET and known.name in _FORCED:
            usual = b""
        if value is not None and value != usual and not _is_left_over(known, value):
            if known.device:
                value = _device_name(one, value, known.device)
            found.append(Option(level=known.level, name=known.name, value=value))
    is_sized = any(one.level == socket.SOL_SOCKET and one.name in _FORCED for one in found)
    if is_sized and one.proto != table.IPPROTO_MPTCP:
        # To be set last: setting a size locks it. MPTCP doesn't have it.
        value = one.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, 4)
        found.append(Option(level=socket.SOL_SOCKET, name=SO_BUF_LOCK, value=value))
    return found


@cache
def _of_new_ones(family: int, kind: int, protocol: int) -> list[tuple[Known, bytes]]:
    """Return the options that this kernel has for such sockets, as they are at first."""
    # To have an ICMP socket takes a group of those in net.ipv4.ping_group_range.
    is_icmp = kind == socket.SOCK_DGRAM and protocol in _ICMP
    with socket.socket(family, kind, 0 if is_icmp else protocol) as fresh:
        values = ((one, _value(fresh, one)) for one in table.known(family, kind, protocol))
        return [(one, value) for one, value in values if value is not None]


def _value(one: socket.socket, known: Known) -> bytes | None:
    """Return an option's value; None if this kernel, or this kind of socket, doesn't have it."""
    try:
        found = one.getsockopt(known.level, known.name, min(known.size, _MOST_OF_PYTHON))
        if len(found) < _MOST_OF_PYTHON:
            return found
        value, length = bytearray(known.size), bytearray(known.size.to_bytes(4, "little"))
        HERE.call(SYS.GETSOCKOPT, one.fileno(), known.level, known.name, value, length)
        return bytes(value[: int.from_bytes(length, "little")])
    except OSError as error:
        if error.errno in (errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ENOTCONN, errno.EINVAL):
            return None
        raise


def _is_left_over(known: Known, value: bytes) -> bool:
    """Tell whether the kernel has a value by itself, as of a former connection: it takes none."""
    is_segment = (known.level, known.name) == (socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    size = int.from_bytes(value, "little")
    return is_segment and not _SMALLEST_SEGMENT <= size <= _LARGEST_SEGMENT


def _device_name(one: socket.socket, number: bytes, order: str) -> bytes:
    """Return the name of a device by its number, in an order of bytes; empty if it is gone."""
    index = int.from_bytes(number, "big" if order == "network" else "little")
    return netdevice.name_of(one.fileno(), index)


def refuse_unknown(one: socket.socket) -> None:
    """Refuse what options tell of that can't be made again."""
    stream = one.type == socket.SOCK_STREAM and one.proto == socket.IPPROTO_TCP
    if stream and one.getsockopt(socket.IPPROTO_TCP, table.TCP_ULP, 16).rstrip(b"\0"):
        raise UnsupportedResource("is a TCP connection with TLS in the kernel (TCP_ULP)")
    if stream and one.getsockopt(socket.IPPROTO_TCP, table.TCP_REPAIR):
        raise UnsupportedResource("is a TCP socket that a program has under repair (TCP_REPAIR)")
    authenticated = Known(socket.IPPROTO_TCP, table.TCP_AO_INFO, 64)
    try:
        if stream and _value(one, authenticated) is not None:
            raise UnsupportedResource("is a TCP socket with keys of TCP-AO (RFC 5925)")
    except FileNotFoundError:
        pass  # the kernel could, but the socket has none
    router_alert = Known(socket.IPPROTO_IPV6, table.IPV6_ROUTER_ALERT)
    if one.family == socket.AF_INET6 and any(_value(one, router_alert) or b""):
        raise UnsupportedResource("is a socket that gets packets for routers (IPV6_ROUTER_ALERT)")
    if one.proto == socket.IPPROTO_UDP and one.type == socket.SOCK_DGRAM:
        tunnel = one.getsockopt(socket.IPPROTO_UDP, table.UDP_ENCAP)
        if tunnel not in (0, table.UDP_ENCAP_ESPINUDP):
            raise UnsupportedResource(
                f"is a UDP socket that is the kernel's end of a tunnel (UDP_ENCAP {tunnel})"
            )


def refuse_notifications(one: socket.socket) -> None:
    """Refuse what would wait for word that its data were sent (MSG_ZEROCOPY), and get none."""
    if not one.getsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY):
        return
    unsent = bytearray(4)
    with suppress(OSError):  # listening
        fcntl.ioctl(one.fileno(), termios.TIOCOUTQ, unsent)
    if any(unsent) or ready_for(one.fileno(), 0) & select.POLLERR:
        raise UnsupportedResource(
            "is a socket with notifications (SO_ZEROCOPY) that nobody has read, or that are still"
            " to come",
            hint="try again in a moment",
        )


def refuse_wider(
    options: Iterable[Option], family: int, kind: int, protocol: int, bounding: int
) -> None:
    """Refuse an image's options that nobody knows, or that need a right the container lacks."""
    known = {(one.level, one.name): one for one in table.known(family, kind, protocol)}
    known[socket.SOL_SOCKET, SO_BUF_LOCK] = Known(socket.SOL_SOCKET, SO_BUF_LOCK)
    for option in options:
        what = f"socket option {option.name} of level {option.level}"
        one = known.get(option.place)
        size = 0 if one is None else 16 if one.device else one.size
        if one is None or len(option.value) > size or _is_too_large(option):
            raise ImageError(f"the image has an impossible {what}")
        rights = _rights(one, option)
        if rights and not rights & bounding:
            name = "CAP_NET_ADMIN" if rights & CAP_NET_ADMIN else "CAP_NET_RAW"
            raise UnsupportedResource(
                f"the image has {what}, which needs {name} in the new container",
                hint="add it to process.capabilities.bounding in the bundle's config.json",
            )


def _rights(known: Known, option: Option) -> int:
    """Return the capabilities one of which setting an option to its value needs; 0 if none."""
    value = int.from_bytes(option.value[:4], "little", signed=True)
    match option.place:
        case (socket.SOL_SOCKET, socket.SO_PRIORITY):
            return 0 if 0 <= value <= _HIGHEST_PRIORITY else CAP_NET_ADMIN
        case (socket.SOL_SOCKET, table.SO_TXTIME):
            return 0 if value == _CLOCK_MONOTONIC else CAP_NET_ADMIN
        case (socket.IPPROTO_TCP, socket.TCP_CONGESTION):
            algorithm = option.value.partition(b"\0")[0]
            return 0 if algorithm in _allowed_congestion_control() else CAP_NET_ADMIN
        case (socket.IPPROTO_IP, table.IP_OPTIONS):
            return 0 if _are_plain(option.value) else CAP_NET_RAW
    return known.rights


def _are_plain(ip_options: bytes) -> bool:
    """Tell whether anybody may set these options of IP packets (ip_options_compile())."""
    at = 0
    while at < len(ip_options):
        kind = ip_options[at]
        if kind not in _PLAIN_IP_OPTIONS:
            return False
        at += 1 if kind in (0, 1) else max(ip_options[at + 1] if at + 1 < len(ip_options) else 1, 1)
    return True


def _allowed_congestion_control() -> list[bytes]:
    """Return the algorithms that need no right."""
    with open(_ALLOWED_CONGESTION_CONTROL, "rb") as file:
        return file.read().split()


def _is_too_large(option: Option) -> bool:
    is_buffer = option.level == socket.SOL_SOCKET and option.name in _FORCED
    return is_buffer and int.from_bytes(option.value, "little") > _LARGEST_BUFFER


def own_addresses(options: Iterable[Option]) -> set[bytes]:
    """Return the addresses that options name."""
    place = socket.IPPROTO_IP, table.IP_MULTICAST_IF
    return {option.value for option in options if option.place == place and any(option.value)}


def moved(options: Iterable[Option], moves: Mapping[bytes, bytes]) -> list[Option]:
    """Return options for a container that has other addresses."""
    named = own_addresses(options)
    return [
        Option(level=option.level, name=option.name, value=moves.get(option.value, option.value))
        if option.value in named
        else option
        for option in options
    ]


def early(options: Iterable[Option], family: int, kind: int, protocol: int) -> list[Option]:
    """Return the options that must be set before the socket is bound."""
    first = {(one.level, one.name) for one in table.known(family, kind, protocol) if one.early}
    return [option for option in options if option.place in first]


def restore_early(
    making: Making, fd: int, options: Iterable[Option], family: int, kind: int, protocol: int
) -> None:
    """Set the options that must be set before the socket is bound, but a device that is missing."""
    program: Program = making.program
    first = early(options, family, kind, protocol)
    if missing_device(making, first):
        first = [option for option in first if option.place != table.BOUND_TO_DEVICE]
    restore(program, fd, first, force=making.may_force_buffers)


def late(options: Iterable[Option], family: int, kind: int, protocol: int) -> list[Option]:
    """Return those for the time after; SO_REUSEADDR is one of both, since bind(2) may need it."""
    first = early(options, family, kind, protocol)
    return [
        option
        for option in options
        if option not in first or option.place == (socket.SOL_SOCKET, socket.SO_REUSEADDR)
    ]


def restore(on: Caller, fd: int, options: Iterable[Option], *, force: bool) -> None:
    """Set recorded options; buffers past the limits for programs, if that may be (`force`)."""
    for option in options:
        name, value = _halved(option, force)
        on.call(SYS.SETSOCKOPT, fd, option.level, name, value, len(value))


def missing_device(making: Making, options: Iterable[Option]) -> bool:
    """Tell whether a socket is bound to a device that the new container has not got."""
    return any(
        option.place == table.BOUND_TO_DEVICE and not making.device_number(option.value)
        for option in options
    )


def restore_all(
    making: Making, fd: int, options: Iterable[Option], family: int, kind: int, protocol: int
) -> None:
    """Likewise, those that name devices, or that may be refused here, included."""
    known = {(one.level, one.name): one for one in table.known(family, kind, protocol)}
    for option in options:
        one = known.get(option.place)
        name, value = _halved(option, making.may_force_buffers)
        if one is not None and one.device:
            number = making.device_number(value)
            value = number.to_bytes(4, "big" if one.device == "network" else "little")
        program: Program = making.program
        set_ = program.call(SYS.SETSOCKOPT, fd, option.level, name, value, len(value))
        if one is not None and one.uncertain:
            program.may_fail(set_)


def missing(
    descriptor: int, options: Iterable[Option], family: int, kind: int, protocol: int
) -> str:
    """Say which options a socket of ours does without here."""
    uncertain = {
        (one.level, one.name): one for one in table.known(family, kind, protocol) if one.uncertain
    }
    with socket.socket(fileno=os.dup(descriptor)) as one:
        for option in options:
            known = uncertain.get(option.place)
            if known is None:
                continue
            value = _value(one, known)
            if value is not None and known.device:
                value = _device_name(one, value, known.device)
            if value != option.value and option.place == table.BOUND_TO_DEVICE:
                device = os.fsdecode(option.value.rstrip(b"\0"))
                return (
                    f"nothing reaches a socket that is bound to {device}: there is no such device"
                )
            if value != option.value:
                return (
                    f"a socket does without its option {option.name} of level {option.level}"
                    f" ({option.value!r}), which cannot be set here"
                )
    return ""


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


def ready_for(descriptor: int, events: int) -> int:
    """Return which of these events of poll(2), and of errors and ends, a socket is ready for."""
    poll = select.poll()
    poll.register(descriptor, events)
    return sum(found for _, found in poll.poll(0))
