"""What MPTCP tells its peers of, and connects by: endpoints and limits (ip mptcp)."""

import errno
import socket
import struct
from _socket import socket as raw_socket
from collections.abc import Mapping

from woodfrog.errors import ImageError, while_
from woodfrog.image.record import Part
from woodfrog.kernel.netlink import dumps, generic
from woodfrog.kernel.netlink.attributes import INDEX, U8, U16, U32, Layout, Visitor, data, walk
from woodfrog.kernel.netlink.messages import (
    NLM_F_ACK,
    answers,
    attribute,
    attributes_of,
    message,
    nested,
)
from woodfrog.resources import namespaces

# linux/mptcp_pm.h
_NAME = "mptcp_pm"
_ADD_ENDPOINT, _GET_ENDPOINTS, _SET_LIMITS, _GET_LIMITS = 1, 3, 5, 6
_ENDPOINT, _ACCEPTED, _SUBFLOWS = 1, 2, 3
_FLAGS, _IMPLICIT = 6, 1 << 4
_LAYOUT: Layout = {1: U16, 2: U8, 3: data(4, 4), 4: data(16, 16), 5: U16, 6: U32, 7: INDEX}
_MOST = 255  # ids are of one byte
# Of a namespace in which nobody has set them; before Linux 5.17, and since.
_USUAL = ((0, 0), (0, 2))
_ELSEWHERE = (errno.EADDRNOTAVAIL, errno.EADDRINUSE)


class Mptcp(Part, frozen=True):
    """Endpoints, each as attributes, and how many of the peers' are accepted and connected by."""

    endpoints: list[bytes]
    accepted: int
    subflows: int

    def devices(self) -> set[int]:
        """Return the indexes of the devices that endpoints are at."""
        return {index for one in self.endpoints for index in _devices(one)}


def _devices(endpoint: bytes) -> set[int]:
    found = set()

    def note(index: int) -> int:
        found.add(index)
        return index

    walk(endpoint, _LAYOUT, Visitor(note, lambda _: None))
    return found


def collect(namespace: int) -> Mptcp | None:
    """Return what programs have set in the network namespace that a descriptor names."""
    with namespaces.within(namespace, "net"):
        netlink = dumps.open_socket(generic.NETLINK_GENERIC)
    try:
        family = generic.family(netlink, _NAME)
        if family is None:
            return None
        told = dumps.dump(netlink, family, generic.header(_GET_ENDPOINTS))
        endpoints = [
            attributes_of(payload[generic.HEADER_BYTES :]).get(_ENDPOINT | 0x8000, b"")
            for kind, payload in dumps.messages(told)
            if kind == family
        ]
        limits = _limits(netlink, family)
    finally:
        netlink.close()
    kept = [
        walk(one, _LAYOUT, Visitor(lambda index: index, lambda _: None))
        for one in endpoints
        if one and not _is_implicit(one)
    ]
    if not kept and limits in _USUAL:
        return None
    accepted, subflows = limits
    return Mptcp(endpoints=kept, accepted=accepted, subflows=subflows)


def _is_implicit(endpoint: bytes) -> bool:
    """Tell whether the kernel has made it by itself, for a connection."""
    flags = attributes_of(memoryview(endpoint)).get(_FLAGS, b"")
    return bool(int.from_bytes(flags, "little") & _IMPLICIT)


def _limits(netlink: raw_socket, family: int) -> tuple[int, int]:
    netlink.send(message(family, NLM_F_ACK, generic.header(_GET_LIMITS)))
    found: dict[int, bytes] = {}
    for _, payload in answers(netlink, _NAME):
        found |= attributes_of(payload[generic.HEADER_BYTES :])
    accepted, subflows = found.get(_ACCEPTED, b""), found.get(_SUBFLOWS, b"")
    return int.from_bytes(accepted, "little"), int.from_bytes(subflows, "little")


def check(mptcp: Mptcp, indexes: Mapping[int, int]) -> None:
    """Check what an image has."""
    if len(mptcp.endpoints) > _MOST or not all(
        0 <= one < 1 << 32 for one in (mptcp.accepted, mptcp.subflows)
    ):
        raise ImageError("the image has impossible limits of MPTCP")
    for one in mptcp.endpoints:
        _moved(one, indexes)


def _moved(endpoint: bytes, indexes: Mapping[int, int]) -> bytes:
    def unknown(number: int) -> None:
        raise ImageError(f"the image has an impossible endpoint of MPTCP, {number}")

    try:
        return walk(endpoint, _LAYOUT, Visitor(indexes.__getitem__, unknown))
    except (ValueError, KeyError) as error:
        raise ImageError(f"the image has an impossible endpoint of MPTCP: {error}") from error


def make(netlink: socket.socket, mptcp: Mptcp, indexes: Mapping[int, int]) -> list[str]:
    """Set it by a socket that has the container's own rights; returns what can't be had here."""
    missing = []
    with while_("setting up MPTCP"):
        family = generic.family(netlink, _NAME)
        if family is None:
            return ["endpoints of MPTCP, which this kernel does not have"]
        limits = attribute(_ACCEPTED, struct.pack("<I", mptcp.accepted))
        limits += attribute(_SUBFLOWS, struct.pack("<I", mptcp.subflows))
        _request(netlink, family, _SET_LIMITS, limits)
        for one in mptcp.endpoints:
            if not _devices(one) <= indexes.keys():
                missing.append("the container lacks the network device of an endpoint of MPTCP")
                continue
            try:
                _request(netlink, family, _ADD_ENDPOINT, nested(_ENDPOINT, _moved(one, indexes)))
            except OSError as error:
                if error.errno not in _ELSEWHERE:
                    raise
                missing.append(f"the container can't have an endpoint of MPTCP: {error.strerror}")
    return missing


def _request(netlink: socket.socket, family: int, command: int, attributes: bytes) -> None:
    netlink.sendall(message(family, NLM_F_ACK, generic.header(command) + attributes))
    for _ in answers(netlink, _NAME):
        pass
