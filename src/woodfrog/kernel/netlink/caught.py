"""Packets on their way out of a network namespace, caught by nf_tables and nfnetlink_log."""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from woodfrog.kernel.netlink import nftables
from woodfrog.kernel.netlink.messages import (
    NLM_F_ACK,
    answers,
    attribute,
    attributes_of,
    message,
    socket_at,
)
from woodfrog.kernel.netlink.nf_messages import NETLINK_NETFILTER

_SUBSYSTEM_ULOG = 4 << 8
_PACKET, _CONFIG = 0, 1
_HEAD = struct.Struct(">BBH")  # nfgenmsg: family, version, group
# linux/netfilter/nfnetlink_log.h
_CFG_CMD, _CFG_MODE, _CFG_QTHRESH = 1, 2, 5
_CMD_BIND, _COPY_PACKET, _LONGEST = 1, 2, 0xFFFF
_PAYLOAD = 9
_PATIENCE = struct.pack("<2q", 1, 0)


class Caught:
    """What is caught, one packet after the other."""

    def __init__(self, log: socket.socket) -> None:
        self._log = log

    def next(self) -> bytes:
        """Return the next IP packet; raises TimeoutError if none comes."""
        try:
            data = memoryview(self._log.recv(1 << 18))
        except BlockingIOError:
            raise TimeoutError("no packet is caught") from None
        return attributes_of(data[20:]).get(_PAYLOAD, b"")


@contextmanager
def caught(namespace: int, protocol: int, port: int) -> Iterator[Caught]:
    """Catch what is sent from a port of UDP or its like, in the namespace of a descriptor.

    It goes nowhere else. The kernel ends this by itself when we end, in whatever way.
    """
    group = os.getpid() & 0xFFFF
    with socket_at(namespace, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as log:
        log.bind((0, 0))
        for one in (
            attribute(_CFG_CMD, bytes((_CMD_BIND,))),
            attribute(_CFG_MODE, struct.pack(">IBx", _LONGEST, _COPY_PACKET)),
            attribute(_CFG_QTHRESH, struct.pack(">I", 1)),
        ):
            head = _HEAD.pack(socket.AF_UNSPEC, 0, group)
            log.send(message(_SUBSYSTEM_ULOG | _CONFIG, NLM_F_ACK, head + one))
            for _ in answers(log, "nfnetlink_log"):
                pass
        log.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
        with nftables.logged_and_dropped(namespace, protocol, port, group):
            yield Caught(log)
