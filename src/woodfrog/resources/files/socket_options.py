"""Socket options (socket(7)) that programs set and expect to find again."""

import socket
from collections.abc import Iterable

from woodfrog.image.record import Part
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import Caller

_SO_REUSEPORT, _SO_PASSSEC, _SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 15, 34, 33, 32
_SO_BUSY_POLL = 46
_IPPROTO_IPV6_V6ONLY = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 4)

# (level, name, bytes); SO_RCVTIMEO and SO_SNDTIMEO are a timeval, SO_LINGER two ints.
_GENERAL = (
    (socket.SOL_SOCKET, socket.SO_REUSEADDR, 4),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 4),
    (socket.SOL_SOCKET, socket.SO_BROADCAST, 4),
    (socket.SOL_SOCKET, socket.SO_OOBINLINE, 4),
    (socket.SOL_SOCKET, socket.SO_PRIORITY, 4),
    (socket.SOL_SOCKET, socket.SO_RCVLOWAT, 4),
    (socket.SOL_SOCKET, socket.SO_LINGER, 8),
    (socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16),
    (socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16),
    (socket.SOL_SOCKET, socket.SO_RCVBUF, 4),
    (socket.SOL_SOCKET, socket.SO_SNDBUF, 4),
)
_UNIX = ((socket.SOL_SOCKET, socket.SO_PASSCRED, 4),)
_INET = ((socket.SOL_SOCKET, _SO_REUSEPORT, 4),)
_TCP = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 4),
    (socket.IPPROTO_TCP, socket.TCP_CORK, 4),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 4),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 4),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_SYNCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_LINGER2, 4),
    (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 4),
)
# Which of the two buffers were set by the program, and so aren't tuned by the kernel.
SO_BUF_LOCK = 72
_FORCED = {socket.SO_RCVBUF: _SO_RCVBUFFORCE, socket.SO_SNDBUF: _SO_SNDBUFFORCE}


class Option(Part, frozen=True):
    """One option whose value is not that of a new socket."""

    level: int
    name: int
    value: bytes


def _known(family: int, kind: int) -> list[tuple[int, int, int]]:
    known = list(_GENERAL)
    if family == socket.AF_UNIX:
        known += _UNIX
    if family in (socket.AF_INET, socket.AF_INET6):
        known += _INET
        if kind == socket.SOCK_STREAM:
            known += _TCP
    if family == socket.AF_INET6:
        known.append(_IPPROTO_IPV6_V6ONLY)
    return known


def collect(one: socket.socket) -> list[Option]:
    """Return the options of a socket that differ from those of a new one."""
    found = []
    with socket.socket(one.family, one.type) as fresh:
        for level, name, size in _known(one.family, one.type):
            value = one.getsockopt(level, name, size)
            if value != fresh.getsockopt(level, name, size):
                found.append(Option(level=level, name=name, value=value))
    if any(option.level == socket.SOL_SOCKET and option.name in _FORCED for option in found):
        # To be set last: setting a size locks it.
        value = one.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, 4)
        found.append(Option(level=socket.SOL_SOCKET, name=SO_BUF_LOCK, value=value))
    return found


def restore(on: Caller, fd: int, options: Iterable[Option]) -> None:
    """Set recorded options."""
    for option in options:
        name, value = _forced(option)
        on.call(SYS.SETSOCKOPT, fd, option.level, name, value, len(value))


def restore_here(one: socket.socket, option: Option) -> None:
    """Set one recorded option of a socket of ours."""
    one.setsockopt(option.level, *_forced(option))


def _forced(option: Option) -> tuple[int, bytes]:
    """Return name and value by which an option is set past the limits for programs."""
    if option.level != socket.SOL_SOCKET or option.name not in _FORCED:
        return option.name, option.value
    # The kernel doubles what it is given.
    half = int.from_bytes(option.value, "little") // 2
    return _FORCED[option.name], half.to_bytes(4, "little")
