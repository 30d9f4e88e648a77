"""The keys by which TCP segments are signed (TCP_MD5SIG, RFC 2385)."""

import socket
import struct
from collections.abc import Iterable

from woodfrog.errors import ImageError
from woodfrog.image.record import Part
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.netlink.sock_diag import Md5Key
from woodfrog.remote.program import Program
from woodfrog.resources.files.inet import End

_TCP_MD5SIG_EXT = 32
_TCP_MD5SIG_FLAG_PREFIX = 1
_LONGEST_KEY = 80
_REQUEST = struct.Struct("<128sBBHi80s")  # struct tcp_md5sig
_MAPPED = bytes(10) + b"\xff\xff"


class Signature(Part, frozen=True):
    """A key, for peers whose address begins with the same `prefix` bits."""

    address: bytes
    prefix: int
    key: bytes


def collect(keys: Iterable[Md5Key]) -> list[Signature]:
    """Take over what sock_diag(7) tells, which is only root's to know."""
    return [Signature(address=one.address, prefix=one.prefix, key=one.key) for one in keys]


def check(signatures: Iterable[Signature]) -> None:
    """Check what an image says."""
    for one in signatures:
        size = len(one.address)
        if size not in (4, 16) or not 0 <= one.prefix <= 8 * size:
            raise ImageError("the image has a TCP key for an impossible address")
        if not 0 < len(one.key) <= _LONGEST_KEY:
            raise ImageError("the image has a TCP key of an impossible length")


def restore(program: Program, fd: int, family: int, signatures: Iterable[Signature]) -> None:
    """Give a socket its keys."""
    for one in signatures:
        address = one.address
        if family == socket.AF_INET6 and len(address) == 4:
            address = _MAPPED + address
        request = _REQUEST.pack(
            End(address, 0).packed(family),
            _TCP_MD5SIG_FLAG_PREFIX,
            one.prefix,
            len(one.key),
            0,
            one.key,
        )
        option = socket.IPPROTO_TCP, _TCP_MD5SIG_EXT
        program.call(SYS.SETSOCKOPT, fd, *option, request, len(request))
