"""What programs set up in a network namespace, and what the engine gives a container there."""

import os
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shells import WAIT, frozen, shell

from bundles import Bundle
from containers import Container, Woodfrog, eventually
from images import RECORDS
from needs import needs
from woodfrog.image.container_file import Reader
from woodfrog.kernel.netlink.messages import (
    NLM_F_ACK,
    NLM_F_CREATE,
    answers,
    attribute,
    message,
    nested,
    socket_in,
)
from woodfrog.resources.network.records import Network

pytestmark = needs("root", "command ip")

Give = Callable[..., None]


def bundle_with(woodfrog: Woodfrog, script: str = "") -> Bundle:
    """Return a bundle whose program may set up its network."""
    bundle = shell(woodfrog, f"{script}: > /work/ready; {WAIT}; exec sleep 1000")
    bundle.add_capabilities("CAP_NET_ADMIN")
    return bundle


def inside(container: Container, *command: str) -> str:
    """Run a command in a container."""
    return container.woodfrog("exec", container.name, *command).stdout


@pytest.fixture
def give() -> Iterator[Give]:
    """Give a waiting container a device as engines do: its other end is outside."""
    made = []

    def give_eth0(container: Container, address: str, index: int = 7) -> None:
        name = f"wf{os.getpid()}-{len(made)}"  # others may run the same test now
        made.append(name)
        where = ["nsenter", f"--net=/proc/{container.init}/ns/net", "ip"]
        pair = f"eth0 index {index} type veth peer {name} netns {os.getpid()}"
        for words in (
            [*where, "link", "add", *pair.split()],
            [*where, "address", "add", f"{address}/24", "dev", "eth0"],
            ["ip", "link", "set", name, "up"],
            [*where, "link", "set", "eth0", "up"],
            [*where, "route", "add", "default", "via", address.rpartition(".")[0] + ".254"],
        ):
            subprocess.run(words, check=True, timeout=60)

    yield give_eth0
    for name in made:
        subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)


def started(woodfrog: Woodfrog, bundle: Bundle, give: Give, address: str) -> Container:
    """Return a running container that its engine has given a network."""
    container = woodfrog.create(bundle)
    give(container, address)
    woodfrog("start", container.name)
    container.wait_for("ready")
    return container


def test_what_the_engine_gives_is_the_new_ones_and_what_programs_did_is_kept(
    woodfrog: Woodfrog, give: Give
) -> None:
    bundle = bundle_with(woodfrog)
    container = started(woodfrog, bundle, give, "192.0.2.5")
    inside(container, "ip", "address", "add", "198.51.100.1/24", "dev", "eth0")
    inside(container, "ip", "route", "add", "203.0.113.0/24", "via", "198.51.100.9")
    inside(container, "ip", "link", "set", "eth0", "mtu", "1400")
    inside(container, "ip", "link", "add", "mac0", "link", "eth0", "type", "macvlan")
    image = frozen(container)

    thawed = woodfrog.create(bundle)
    give(thawed, "192.0.2.66")
    woodfrog("restore", "--detach", f"--image-path={image}", thawed.name)

    addresses = inside(thawed, "ip", "-4", "address", "show", "dev", "eth0")
    assert "192.0.2.66/24" in addresses
    assert "198.51.100.1/24" in addresses
    assert "192.0.2.5/" not in addresses
    assert "mtu 1400" in addresses
    assert "mac0@eth0" in inside(thawed, "ip", "link")
    routes = inside(thawed, "ip", "route")
    assert "203.0.113.0/24 via 198.51.100.9" in routes
    assert routes.count("default") == 1


def test_a_container_without_changes_has_a_network_of_its_own_only(
    woodfrog: Woodfrog, give: Give
) -> None:
    bundle = bundle_with(woodfrog)
    image = frozen(started(woodfrog, bundle, give, "192.0.2.5"))

    with Reader(str(image)) as reader:
        assert not any(isinstance(record, Network) for record in reader.records(RECORDS))
    thawed = woodfrog.restore(bundle, image)
    assert "192.0.2.5" not in inside(thawed, "ip", "address")


def test_a_device_that_the_new_container_lacks_is_told(woodfrog: Woodfrog, give: Give) -> None:
    bundle = bundle_with(woodfrog)
    container = started(woodfrog, bundle, give, "192.0.2.5")
    inside(container, "ip", "address", "add", "198.51.100.1/24", "dev", "eth0")
    image = frozen(container)

    thawed = woodfrog.restore(bundle, image)

    assert "has no network device eth0 any more" in woodfrog.output(thawed.name)
    assert "198.51.100.1" not in inside(thawed, "ip", "address")


def refusal(woodfrog: Woodfrog, bundle: Bundle, image: Path) -> str:
    """Return why a restore is refused."""
    bundle.save()
    woodfrog.names.append("refused")
    where = f"--bundle={bundle.directory}", f"--image-path={image}"
    return woodfrog("restore", "--detach", *where, "refused", status=1).stderr


def test_an_index_that_the_engine_has_given_to_another_is_told(
    woodfrog: Woodfrog, give: Give
) -> None:
    bundle = bundle_with(woodfrog)
    container = started(woodfrog, bundle, give, "192.0.2.5")
    for words in (
        "link add left index 9 type veth peer name right",
        "address add 198.51.100.1/24 dev left",
        "link set left up",
        "link set right up",
        "route add 203.0.113.0/24 via 198.51.100.9",
    ):
        inside(container, "ip", *words.split())
    image = frozen(container)

    thawed = woodfrog.create(bundle)
    give(thawed, "192.0.2.66", 9)
    done = woodfrog("restore", "--detach", f"--image-path={image}", thawed.name)

    assert "left has the index" in done.stderr
    assert "via 198.51.100.9 dev left" in inside(thawed, "ip", "route")


def test_a_device_over_one_that_the_new_container_lacks_is_refused(
    woodfrog: Woodfrog, give: Give
) -> None:
    bundle = bundle_with(woodfrog)
    container = started(woodfrog, bundle, give, "192.0.2.5")
    inside(container, "ip", "link", "add", "mac0", "link", "eth0", "type", "macvlan")

    assert "mac0 that is made over eth0" in refusal(woodfrog, bundle, frozen(container))


def test_who_may_not_set_up_a_network_gets_none(woodfrog: Woodfrog) -> None:
    script = (
        "ip link add left type veth peer name right; : > /work/ready;"
        " exec setpriv --bounding-set=-net_admin sleep 1000;"
    )
    bundle = bundle_with(woodfrog, script)
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = frozen(container)
    namespaces = bundle.config["linux"]["namespaces"]

    namespaces[:] = [one for one in namespaces if one["type"] != "network"]
    namespaces.append({"type": "network", "path": "/proc/self/ns/net"})
    assert "joins a network namespace" in refusal(woodfrog, bundle, image)

    namespaces[-1] = {"type": "network"}
    for capabilities in bundle.process["capabilities"].values():
        capabilities.remove("CAP_NET_ADMIN")
    assert "may not do (CAP_NET_ADMIN)" in refusal(woodfrog, bundle, image)


_U32 = "filter add dev qa parent 1: prio 5 protocol ip"
_SHAPED = (
    "qdisc add dev eth0 root tbf rate 1mbit burst 10kb limit 9000 peakrate 2mbit mtu 1500",
    "qdisc add dev eth0 clsact",
    "filter add dev eth0 ingress prio 7 u32 match u32 0 0 action mirred egress redirect dev qb",
    'filter add dev eth0 egress bpf bytecode "1,6 0 0 4294967295," flowid 1:1',
    "qdisc add dev qa root handle 1: htb default 20",
    "class add dev qa parent 1: classid 1:30 htb rate 10mbit",
    "class add dev qa parent 1:30 classid 1:20 htb rate 5mbit ceil 8mbit prio 2 quantum 2000",
    "qdisc add dev qa parent 1:20 handle 9: pfifo limit 99",
    "qdisc add dev qb root bfifo limit 9999",
    f"{_U32} handle 3: u32 divisor 16",
    f"{_U32} u32 ht 3:2: match ip sport 80 0xffff flowid 1:20",
    f"{_U32} u32 ht 800:: match ip src 10.0.0.0/8 hashkey mask 0xff at 12 link 3:",
    "filter add dev qa parent 1: prio 2 protocol ipv6 u32 match ip6 dst fd00::/8 flowid 1:20",
)


def shaping(container: Container) -> list[str]:
    """Return what tc tells of traffic control, and which device a filter leads to."""
    told = [inside(container, "tc", "qdisc"), inside(container, "tc", "class", "show", "dev", "qa")]
    for where in (("qa",), ("eth0", "ingress"), ("eth0", "egress")):
        told.append(inside(container, "tc", "filter", "show", "dev", *where))
    return [line for text in told for line in text.splitlines()]


@needs("command tc")
def test_traffic_control_is_as_it_was(woodfrog: Woodfrog, give: Give) -> None:
    bundle = bundle_with(woodfrog)
    container = started(woodfrog, bundle, give, "192.0.2.5")
    inside(container, *shlex.split("ip link add qa type veth peer name qb"))
    for line in _SHAPED:
        inside(container, "tc", *shlex.split(line))
    before = shaping(container)
    assert len(before) > 20, before

    thawed = woodfrog.create(bundle)
    give(thawed, "192.0.2.66", 9)
    woodfrog("restore", "--detach", f"--image-path={frozen(container)}", thawed.name)

    assert shaping(thawed) == before


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            "tc qdisc add dev lo root handle 1: htb;"
            " tc filter add dev lo prio 1 u32 match u32 0 0 flowid 1:1;"
            " tc filter add dev lo prio 2 u32 match u32 0 0 flowid 1:1;"
            " tc filter del dev lo prio 1",
            "hash tables whose numbers",
        ),
        ("ip xfrm policy add dir out src 10.1.0.0/24 dst 10.2.0.0/24", "policies of IPsec"),
        ("ip addrlabel add prefix fd77::/64 label 99", "labels of addresses"),
        ("ip xfrm policy setdefault in block", "a policy of IPsec that blocks"),
        ("ip sr tunsrc set fd00::9", "a source of segment routing"),
        ("printf 'secret\\n' | ip sr hmac set 5 sha1", "keys of segment routing"),
        ("ip ioam schema add 6 pond", "schemas of IOAM"),
        (
            "ip link add vx type vxlan external vnifilter dstport 4789"
            " && bridge vni add vni 5 dev vx",
            "a VXLAN that filters networks",
        ),
        (
            "ip link add left type veth peer name right && ip maddr add 01:00:5e:00:00:09 dev left",
            "for groups by hand (ip maddr)",
        ),
        ("ip route add 10.9.0.0/16 encap seg6 mode encap segs fc00::1 dev lo", "encap"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(
    command: str, told: str, woodfrog: Woodfrog
) -> None:
    container = woodfrog.run(bundle_with(woodfrog, f"{command} && "))
    container.wait_for("ready")

    done = container.checkpoint(woodfrog.directory / "image", status=1)

    assert told in done.stderr
    assert "running as before" in done.stderr


def test_sets_of_ipset_are_refused(woodfrog: Woodfrog) -> None:
    container = woodfrog.run(bundle_with(woodfrog))
    container.wait_for("ready")
    create = 6 << 8 | 2
    body = bytes((2, 0, 0, 0)) + attribute(1, b"\x07") + attribute(2, b"pond\0")
    body += attribute(3, b"hash:ip\0") + attribute(4, b"\0") + attribute(5, b"\x02") + nested(7)
    with socket_in(container.init, socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
        netlink.send(message(create, NLM_F_CREATE | NLM_F_ACK, body))
        assert list(answers(netlink, "ipset")) == []

    assert "ipset (pond)" in container.checkpoint(woodfrog.directory / "image", status=1).stderr


@pytest.mark.parametrize(
    ("kind", "body", "told"),
    [
        (7 << 8, attribute(1, b"pond\0"), "counters of nfacct"),
        (
            8 << 8,
            attribute(1, b"pond\0")
            + attribute(2, b"\0\x02")
            + attribute(3, b"\x06")
            + nested(4, attribute(3, b"\0\0\0\x09")),
            "time-outs of nfct",
        ),
    ],
)
def test_objects_of_netfilter_are_refused(
    kind: int, body: bytes, told: str, woodfrog: Woodfrog
) -> None:
    container = woodfrog.run(bundle_with(woodfrog))
    container.wait_for("ready")
    with socket_in(container.init, socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
        netlink.send(message(kind, NLM_F_CREATE | NLM_F_ACK, bytes(4) + body))
        assert list(answers(netlink, "netfilter")) == []

    assert told in container.checkpoint(woodfrog.directory / "image", status=1).stderr


@needs("command nft")
def test_what_was_tracked_of_connections_is_known_again(woodfrog: Woodfrog) -> None:
    script = (
        "nft 'table ip f { chain c { type filter hook output priority 0; ct state new accept; }; }'"
        "; bash -c 'echo x > /dev/udp/127.0.0.1/9'; "
    )
    container = woodfrog.run(bundle_with(woodfrog, script))
    container.wait_for("ready")
    thawed = woodfrog.restore(container.bundle, frozen(container))
    count = "/proc/sys/net/netfilter/nf_conntrack_count"
    assert inside(thawed, "cat", count) == "1\n"
    assert "dport=9 [UNREPLIED]" in inside(thawed, "cat", "/proc/net/nf_conntrack")


_A_BRIDGE = """
        ip link add br0 type bridge
        ip link set br0 up
        ip link add veth0 type veth peer name port0
        ip link set port0 master br0
        ip link set veth0 up
        ip link set port0 up
        ip address add 10.5.0.1/24 dev br0
        ip address add 10.5.0.2/24 dev veth0
        ip address add fd05::1/64 dev br0 nodad
        ip route add 10.6.0.0/16 via 10.5.0.9
        ip rule add from 10.5.0.0/24 lookup 99
        ip route add default via 10.5.0.8 table 99
"""
_MUCH = """
        ip link add a0 type veth peer name a1
        ip addr add 10.1.0.1/24 dev a0
        ip addr add fd01::1/64 dev a0
        ip link set a1 mtu 1000 up
        ip link add b0 type veth peer name b1
        ip link set b0 addrgenmode none
        ip link set b0 up
        ip link set b1 up
        ip addr add fd02::1/64 dev b0 nodad
        ip addr add fd02::2/64 dev b0 nodad
        ip addr add fd02::3/64 dev b0 nodad preferred_lft 0
        ip addr add 10.2.0.1 peer 10.2.0.2/32 dev b0
        ip addr add 10.2.1.1/24 brd + dev b0 noprefixroute
        ip -6 route add fd09::/64 nexthop via fd02::8 dev b0 weight 2 nexthop via fd02::9 dev b0
        ip route add 10.9.0.0/24 nexthop via 10.2.0.2 dev b0 weight 3 nexthop dev b1
        ip route add 10.8.0.0/24 dev b0 src 10.2.1.1 mtu lock 1200 advmss 900 rto_min 5ms quickack 1
        ip route add throw 10.7.0.0/24 table 50
        ip route add local 10.66.0.0/24 dev lo
        ip -6 route add default via fd02::7 metric 5 pref high
        ip -6 rule add to fd77::/16 lookup 77 suppress_prefixlength 3
        ip link add br0 type bridge mcast_snooping 1 mcast_querier 1
        ip link set b1 master br0
        ip link set br0 address 02:00:00:00:00:77 up
        ip link add x0 link b0 type macvlan mode private
        ip link add v0 type vxlan id 5 group 239.1.1.1 dev b0 dstport 4789
        ip link set v0 up
        ip link add v6 type vxlan id 7 local fd02::1 remote fd02::99 ttl inherit udp6zerocsumrx
        ip link set v6 mtu 1300
        bridge fdb append 02:11:22:33:44:55 dev v0 dst 10.2.0.2 vni 9
        ip neigh add proxy fd02::55 dev b0
        ip -6 neigh add fd02::66 lladdr 02:00:00:00:00:01 dev b0 router
        ip link add ifb0 type ifb
        ip link set ifb0 txqueuelen 5 group 4 alias "x y"
        ip link property add dev ifb0 altname foo altname bar
        ip nexthop add id 5 via 10.2.0.2 dev b0
        ip nexthop add id 6 blackhole
        ip nexthop add id 7 group 5 type mpath
        ip route add 10.44.0.0/24 nhid 7
        ip link set lo mtu 9000 arp off
        ip addr add 10.250.0.1/32 dev lo label lo:x
"""


@needs("command bridge")
@pytest.mark.parametrize("commands", [_A_BRIDGE, _MUCH], ids=["a bridge", "much"])
def test_iproute2_shows_the_same_before_and_after(commands: str, woodfrog: Woodfrog) -> None:
    bundle = bundle_with(woodfrog, f"{commands}\n")
    container = woodfrog.run(bundle)
    container.wait_for("ready")

    def shown(container: Container) -> list[str]:
        asked = (
            "-d -o link",
            "-o address",
            "route show table all",
            "-6 route show table all",
            "rule",
            "-6 rule",
            "neighbour show nud permanent",
            "neighbour show proxy",
            "nexthop",
        )
        found = [
            line for one in asked for line in inside(container, "ip", *one.split()).splitlines()
        ]
        found += inside(container, "bridge", "fdb").splitlines()
        # A bridge's timers and what it tells others follow from the rest.
        words = [line.split() for line in found]
        return sorted(
            " ".join(
                word
                for before, word in zip(["", *line], line, strict=False)
                if not before.endswith(("_timer", "lft")) and not word.endswith("sec")
            )
            for line in words
        )

    def settled(container: Container) -> list[str]:
        """Return what is shown for a second, when nothing comes and goes any more."""
        found: list[list[str]] = [[]]

        def stays() -> bool:
            found.append(shown(container))
            time.sleep(1)
            return shown(container) == found[-1]

        eventually(stays, "its network has settled")
        return found[-1]

    before = settled(container)
    thawed = woodfrog.restore(bundle, frozen(container))

    assert settled(thawed) == before


@needs("command nft")
def test_a_rollback_refuses_what_was_set_up_since(woodfrog: Woodfrog) -> None:
    script = (
        "ip link add left type veth peer name right; ip link set left up; ip link set right up;"
        " nft 'table ip f { chain c { type filter hook output priority 0; counter; }; }';"
        " : > /work/ready; exec sleep 1000;"
    )
    container = woodfrog.run(bundle_with(woodfrog, script))
    container.wait_for("ready")

    def has_addresses() -> bool:
        """Tell whether both ends have got theirs, and have found that nobody else has them."""
        asked = "ip", "-6", "-oneline", "address", "show", "scope", "link"
        found = inside(container, *asked)
        return found.count(" fe80::") == 2 and "tentative" not in found

    eventually(has_addresses, "the devices have addresses")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running")
    rollback = "rollback", f"--image-path={image}", container.name
    inside(container, "bash", "-c", "echo x > /dev/udp/127.0.0.1/9")
    woodfrog(*rollback)

    inside(container, "nft", "add rule ip f c drop")
    assert "network or packet filters have changed" in woodfrog(*rollback, status=1).stderr
    inside(container, "nft", "flush chain ip f c")
    inside(container, "nft", "add rule ip f c counter")
    woodfrog(*rollback)
    inside(container, "ip", "address", "add", "10.1.0.1/24", "dev", "left")
    assert "network or packet filters have changed" in woodfrog(*rollback, status=1).stderr
