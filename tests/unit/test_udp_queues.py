"""Datagrams that an image says to have waited: each that is let through can be sent again."""

import socket

import pytest

from woodfrog.errors import ImageError
from woodfrog.resources.files import inet, udp_queue
from woodfrog.resources.files.inet import End
from woodfrog.resources.files.udp_queue import Datagram

FOUR = socket.inet_pton(socket.AF_INET, "192.0.2.1")
MAPPED = socket.inet_pton(socket.AF_INET6, "::ffff:192.0.2.1")
SIX = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
LARGEST = {FOUR: 65_507, MAPPED: 65_507, SIX: 65_527}


@pytest.mark.parametrize("source", [FOUR, MAPPED, SIX], ids=["IPv4", "mapped", "IPv6"])
def test_what_is_let_through_can_be_sent(source: bytes) -> None:
    traffic = (1 << 28) - 1 if source == SIX else 255
    one = Datagram(source=source, port=7, data=bytes(LARGEST[source]), traffic=traffic)

    udp_queue.check([one], socket.IPPROTO_UDP)

    plain = End(source, 7).unmapped().address
    segment = bytes(8) + one.data
    assert inet.packet(socket.IPPROTO_UDP, plain, plain, segment, 6, one.ttl, one.traffic)


@pytest.mark.parametrize(
    ("source", "length", "traffic"),
    [
        (FOUR, 65_508, 0),
        (MAPPED, 65_508, 0),
        (SIX, 65_528, 0),
        (FOUR, 1, 256),
        (MAPPED, 1, 256),
        (SIX, 1, 1 << 28),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else value.hex(),
)
def test_what_no_packet_holds_is_refused(source: bytes, length: int, traffic: int) -> None:
    one = Datagram(source=source, port=7, data=bytes(length), traffic=traffic)

    with pytest.raises(ImageError, match="impossible datagram"):
        udp_queue.check([one], socket.IPPROTO_UDP)


def test_an_answer_to_a_ping_has_no_head_of_udp() -> None:
    one = Datagram(source=FOUR, port=0, data=bytes(65_515))

    udp_queue.check([one], socket.IPPROTO_ICMP)
