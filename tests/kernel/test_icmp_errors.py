"""Errors that wait at a socket can be taken from it, and brought to it once more."""

import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator

import pytest

from needs import needs
from woodfrog.kernel.netlink.messages import socket_of
from woodfrog.resources.files import icmp_errors, inet
from woodfrog.resources.files.icmp_errors import NetworkError, Pending
from woodfrog.resources.files.inet import End

pytestmark = needs("root", "command ip")

NOBODY = End(b"", 0)
KINDS = {
    # Unreachable host, time exceeded, too large, wrong head.
    socket.AF_INET: ((3, 1, 0), (11, 0, 0), (3, 4, 1400), (12, 0, 20)),
    socket.AF_INET6: ((1, 3, 0), (3, 0, 0), (2, 0, 1400), (4, 0, 8)),
}


@pytest.fixture
def network() -> Iterator[int]:
    """A process in a network namespace of its own, where everybody may have ICMP sockets."""
    script = "ip link set lo up && echo 0 1000 > /proc/sys/net/ipv4/ping_group_range && echo"
    command = ["unshare", "--net", "sh", "-c", f"{script} && exec sleep 600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            yield process.pid
        finally:
            process.kill()


def asking(network: int, family: int, protocol: int) -> socket.socket:
    """Return a socket with a name that is told of errors."""
    one = socket_of(network, family, socket.SOCK_DGRAM, protocol)
    is_four = family == socket.AF_INET
    one.setsockopt(*((socket.IPPROTO_IP, 11) if is_four else (socket.IPPROTO_IPV6, 25)), 1)
    one.bind(("127.0.0.1" if is_four else "::1", 0))
    return one


def taken(one: socket.socket) -> Pending:
    """Take what waits."""
    found = icmp_errors.take(one)
    assert found is not None
    return found


def taken_once_there(one: socket.socket) -> Pending:
    """Take what waits when something does."""
    poll = select.poll()
    poll.register(one.fileno(), 0)
    assert poll.poll(60_000)
    return taken(one)


@pytest.mark.parametrize(
    ("family", "protocol"),
    [
        (socket.AF_INET, socket.IPPROTO_UDP),
        (socket.AF_INET, socket.IPPROTO_ICMP),
        (socket.AF_INET6, socket.IPPROTO_UDP),
        (socket.AF_INET6, socket.IPPROTO_ICMPV6),
    ],
)
def test_errors_are_the_same_when_they_come_again(network: int, family: int, protocol: int) -> None:
    names = ("9.9.9.9", "8.8.8.8") if family == socket.AF_INET else ("2001::9", "2001::8")
    target, offender = (socket.inet_pton(family, name) for name in names)
    with asking(network, family, protocol) as one:
        local = inet.end(one.getsockname())
        is_udp = protocol == socket.IPPROTO_UDP
        ping = struct.pack(">2B3H", 8 if family == socket.AF_INET else 128, 0, 7, local.port, 1)
        queue = [
            NetworkError(
                kind=kind,
                code=code,
                info=info,
                offender=offender,
                target=target,
                port=99 if is_udp else 0,
                data=b"what was sent" if is_udp else ping + b"what was sent",
            )
            for kind, code, info in KINDS[family]
        ]
        icmp_errors.give_back(one, Pending(error=0, queue=queue), local, NOBODY)
        assert taken(one) == Pending(error=0, queue=queue)
        icmp_errors.give_back(one, Pending(error=1, queue=queue), local, NOBODY)
        # The last one may be on its way.
        end = time.monotonic() + 60
        found = taken(one)
        while len(found.queue) < len(queue) or not found.error:
            assert time.monotonic() < end
            more = taken(one)
            found = Pending(error=found.error or more.error, queue=found.queue + more.queue)
        assert found.queue == queue


def test_a_connected_socket_is_told_what_it_was_told(network: int) -> None:
    with socket_of(network, socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP) as one:
        one.bind(("127.0.0.1", 0))
        one.connect(("127.0.0.1", 9))
        one.send(b"to nobody")
        found = taken_once_there(one)

        assert (os.strerror(found.error), found.queue) == ("Connection refused", [])
        peer = End(bytes((127, 0, 0, 1)), 9)
        icmp_errors.give_back(one, found, inet.end(one.getsockname()), peer)
        assert taken_once_there(one) == found


def test_what_tells_of_sending_is_left_alone(network: int) -> None:
    """It waits in the same queue, and nobody can tell it again."""
    with asking(network, socket.AF_INET, socket.IPPROTO_UDP) as one:
        one.setsockopt(socket.SOL_SOCKET, 37, 1 << 1 | 1 << 4)  # software's times of sending
        one.sendto(b"x", ("127.0.0.1", 9))
        poll = select.poll()
        poll.register(one.fileno(), 0)
        assert poll.poll(60_000)

        assert icmp_errors.take(one) is None
        assert one.recvmsg(100, 100, 0x2000)  # still there
