"""Images with sockets that no checkpoint makes."""

import ipaddress
import os
import socket
import subprocess

import msgspec
import pytest
from hostile import ID, Attack, attack

from needs import needs
from woodfrog.kernel.netlink.sock_diag import TCP_ESTABLISHED, TCP_LISTEN
from woodfrog.resources.files.inet_datagram import InetDatagramSocket
from woodfrog.resources.files.packet_ring import Ring, RingPage
from woodfrog.resources.files.packet_socket import PacketSocket
from woodfrog.resources.files.socket_options import Option
from woodfrog.resources.files.tcp_backlog import Waiting
from woodfrog.resources.files.tcp_socket import TcpSocket
from woodfrog.resources.files.tun_queue import TunQueue
from woodfrog.resources.files.udp_queue import Datagram

__all__ = ["attack"]  # the fixture
pytestmark = needs("root")


def datagram_socket(family: int, kind: int, protocol: int) -> InetDatagramSocket:
    return InetDatagramSocket(
        id=ID,
        flags=2,
        family=family,
        type=kind,
        protocol=protocol,
        local=bytes(4),
        port=0,
        peer=b"",
        peer_port=0,
        queue=[],
        options=[],
        filter=None,
        memberships=[],
    )


@pytest.mark.parametrize(
    "kind",
    [
        (socket.AF_PACKET, socket.SOCK_RAW, 0x0300),
        (socket.AF_PACKET, socket.SOCK_DGRAM, socket.IPPROTO_UDP),
        (socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_TCP),
        (socket.AF_INET, 10, 0x0300),  # SOCK_PACKET
    ],
)
def test_no_sockets_that_hear_others(attack: Attack, kind: tuple[int, int, int]) -> None:
    assert "internet socket" in attack.refusal(datagram_socket(*kind))


def test_no_connections_that_wait_for_nobody(attack: Attack) -> None:
    waiting = Waiting(
        file=0,
        source=bytes(4),
        port=1,
        target=bytes((10, 0, 0, 1)),
        target_port=80,
        data=b"",
        finished=False,
    )
    plain = TcpSocket(
        id=ID,
        flags=2,
        family=socket.AF_INET,
        state=TCP_LISTEN,
        local=bytes(4),
        port=0,
        backlog=1,
        reset=False,
        connection=None,
        connecting=b"",
        options=[],
        filter=None,
    )
    elsewhere = msgspec.structs.replace(plain, waiting=[waiting])
    calling = msgspec.structs.replace(plain, state=TCP_ESTABLISHED, calls=True)

    assert "wait where nobody listens" in attack.refusal(elsewhere)
    assert "wait for nobody" in attack.refusal(calling)


def test_no_packet_sockets_without_the_right(attack: Attack) -> None:
    ring = Ring(
        block_size=4096,
        blocks=1,
        frame_size=2048,
        frames=2,
        timeout_ms=0,
        private_bytes=0,
        features=0,
        head=0,
        contents=[RingPage(offset=4096, data=b"outside")],
    )
    plain = PacketSocket(
        id=ID,
        flags=2,
        type=socket.SOCK_RAW,
        protocol=0x0300,
        device=b"",
        gone=False,
        copy_threshold=0,
        memberships=[],
        fanout=-1,
        version=0,
        taking=None,
        giving=None,
        options=[],
        filter=None,
    )

    assert "CAP_NET_RAW" in attack.refusal(plain)
    beyond = msgspec.structs.replace(plain, taking=ring)
    assert "pages outside a ring" in attack.refusal(beyond)


def test_no_tun_devices_without_the_right(attack: Attack) -> None:
    queue = TunQueue(
        id=ID,
        flags=2,
        path=b"/dev/net/tun",
        device=b"tun0",
        device_flags=1,
        send_buffer=1,
        header_bytes=12,
        little_endian=False,
        offload=0,
    )
    pattern = msgspec.structs.replace(queue, device=b"eth%d")

    assert "CAP_NET_ADMIN" in attack.refusal(queue)
    assert "impossible tun device" in attack.refusal(pattern)


@needs("command ip")
def test_nothing_is_sent_into_the_network(attack: Attack) -> None:
    number = os.getpid() * 4 % (1 << 16)  # what runs beside us has a network of its own
    network = ipaddress.IPv4Network(f"10.214.{number >> 8}.{number & 255}/30")
    outside, inside = network.hosts()
    link = f"wf-{os.getpid()}"
    script = f"""
pid=$(sed 's/.*"pid": *\\([0-9]*\\).*/\\1/')
ip link add {link} address 02:00:00:00:00:01 type veth peer name eth0 netns $pid
ip address add {outside}/30 dev {link}
ip link set {link} up
nsenter -t $pid -n ip address add {inside}/30 dev eth0
nsenter -t $pid -n ip link set eth0 up
nsenter -t $pid -n ip neighbour add {outside} lladdr 02:00:00:00:00:01 dev eth0
"""
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=" + os.environ["PATH"]]}
    attack.bundle.config["hooks"] = {"createRuntime": [hook]}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as victim:
        victim.bind(("0.0.0.0", 0))
        port = victim.getsockname()[1]
        plain = datagram_socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
        forged = Datagram(source=inside.packed, port=7, data=b"forged")
        sender = msgspec.structs.replace(plain, local=outside.packed, port=port, queue=[forged])
        # With two addresses of its own, neither becomes the new one.
        other = msgspec.structs.replace(plain, id=ID + 1, local=bytes((10, 0, 0, 1)), port=port)

        told = msgspec.structs.replace(forged, destination=outside.packed, device=b"eth0")
        third = msgspec.structs.replace(plain, id=ID + 2, port=port, queue=[told])

        restored = attack.woodfrog.restore(attack.bundle, attack.hostile(sender, other, third))

        with pytest.raises(BlockingIOError):
            victim.recv(100, socket.MSG_DONTWAIT)
        (attack.bundle.work / "check").write_text("go on\n")
        assert restored.wait() == 0
    subprocess.run(["ip", "link", "delete", link], stderr=subprocess.DEVNULL)


def test_no_congestion_control_but_what_is_allowed(attack: Attack) -> None:
    name = Option(level=socket.IPPROTO_TCP, name=socket.TCP_CONGESTION, value=b"unknown")
    hostile = TcpSocket(
        id=ID,
        flags=2,
        family=socket.AF_INET,
        state=7,
        local=bytes(4),
        port=0,
        backlog=0,
        reset=False,
        connection=None,
        connecting=b"",
        options=[name],
        filter=None,
    )

    assert "CAP_NET_ADMIN" in attack.refusal(hostile)
