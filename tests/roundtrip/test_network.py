"""What programs set up in a network namespace, and what the engine gives a container there."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_surroundings import WAIT, frozen, shell
from test_user_ids import give_user_namespace

from bundles import Bundle
from containers import Container, Woodfrog
from needs import needs
from woodfrog.engine.admission import RECORDS
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
        name = f"wf-out{len(made)}"
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


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("tc qdisc add dev lo root tbf rate 1mbit burst 10kb latency 50ms", "traffic control"),
        ("ip xfrm policy add dir out src 10.1.0.0/24 dst 10.2.0.0/24", "policies of IPsec"),
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


@needs("command nft")
def test_what_was_tracked_of_connections_is_told_as_lost(woodfrog: Woodfrog) -> None:
    script = (
        "nft 'table ip f { chain c { type filter hook output priority 0; ct state new accept; }; }'"
        "; bash -c 'echo x > /dev/udp/127.0.0.1/9'; "
    )
    container = woodfrog.run(bundle_with(woodfrog, script))
    container.wait_for("ready")
    thawed = woodfrog.restore(container.bundle, frozen(container))
    assert "had tracked of 1 connections" in woodfrog.output(thawed.name)


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
    bundle = bundle_with(woodfrog, f"{commands}\nsleep 3;")
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

    before = shown(container)
    thawed = woodfrog.restore(bundle, frozen(container))
    time.sleep(1)

    assert shown(thawed) == before


RULESET = """
table ip nat {
    map ports { type inet_service : ipv4_addr; elements = { 80 : 10.5.0.9, 81 : 10.5.0.8 } }
    chain out { type nat hook postrouting priority srcnat; policy accept;
        oifname "eth0" masquerade random; ip saddr 10.5.0.0/24 snat to 10.7.0.1; }
    chain in { type nat hook prerouting priority dstnat;
        tcp dport 8080 redirect to :80; dnat to tcp dport map @ports; }
}
table inet filter {
    counter hits { packets 7 bytes 99 }
    quota much { over 10 mbytes used 5 kbytes }
    limit slow { rate 5/minute burst 3 packets }
    set blocked { type ipv4_addr; flags interval, timeout; elements = {
        10.9.0.0/16, 10.8.1.1 timeout 1h, 192.0.2.1-192.0.2.9 comment "a few" } }
    set pairs { type ipv4_addr . inet_service; flags interval; elements = {
        10.1.0.0/24 . 80-90, 10.2.0.1 . 22 } }
    set seen { type ipv4_addr; size 100; flags dynamic,timeout; timeout 10m; }
    map verdicts { type inet_service : verdict; elements = { 22 : accept, 23 : jump inner } }
    chain inner { counter packets 3 bytes 4 return comment "inner"; }
    chain input { type filter hook input priority filter; policy drop;
        iif "lo" accept
        ct state vmap { established : accept, related : accept, invalid : drop }
        ip saddr @blocked drop; ip saddr . tcp dport @pairs accept
        tcp dport vmap @verdicts
        meta skuid 7 accept; meta mark & 0xff == 0x12 accept
        tcp flags & (syn | ack) == syn limit rate 10/second burst 5 packets accept
        udp dport { 53, 67-68 } counter packets 5 bytes 6 accept
        ip6 nexthdr icmpv6 icmpv6 type { nd-neighbor-solicit, nd-router-advert } accept
        counter name hits; quota name "much" drop; limit name "slow" accept
        tcp dport 25 add @seen { ip saddr limit rate over 3/minute }
        log prefix "dropped: " level warn flags all; reject with tcp reset; }
    chain forward { type filter hook forward priority filter; tcp option maxseg size set rt mtu
        ct mark set meta mark; fib saddr . iif oif missing drop
        jump { ip saddr 10.3.0.0/24 accept; numgen inc mod 2 0 drop; }; }
}
table arp pond { chain in { type filter hook input priority 0; arp operation request accept; }; }
table bridge pond { chain in { type filter hook prerouting priority 0; ether type ip accept; }; }
table netdev pond { chain in { type filter hook ingress device "lo" priority 0; ip ttl 1 drop; }; }
"""


@needs("command nft")
@pytest.mark.parametrize("has_users", [False, True])
def test_nftables_are_the_same(has_users: bool, woodfrog: Woodfrog) -> None:
    bundle = bundle_with(woodfrog, "nft -f /work/rules 2> /work/failed; ")
    if has_users:
        give_user_namespace(bundle)
    (bundle.work / "rules").write_text(RULESET)
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    assert (bundle.work / "failed").read_text() == ""

    def ruleset(container: Container) -> list[str]:
        text = inside(container, "nft", "list", "ruleset")
        return [re.sub(r" expires \w+", " expires", line) for line in text.splitlines()]

    before = ruleset(container)
    assert len(before) > 70
    image = frozen(container)
    thawed = woodfrog.restore(bundle, image)
    assert ruleset(thawed) == before
    image.rename(image.with_name("first"))
    again = woodfrog.restore(bundle, frozen(thawed))
    assert ruleset(again) == before


def saved(container: Container, kind: str) -> list[str]:
    """Return the rules that iptables shows, without the times at which it did."""
    found = []
    for command in (f"iptables-{kind}-save", f"ip6tables-{kind}-save"):
        lines = inside(container, command, "-c").splitlines()
        found += [line for line in lines if not line.startswith("#")]
    return found


IPTABLES = """
    for four in iptables-{kind} ip6tables-{kind}; do
        $four -N pond; $four -P FORWARD DROP
        $four -A INPUT -p tcp -m multiport --dports 1,2,70:80 -m comment --comment "a few" -j pond
        $four -A pond -m conntrack --ctstate NEW -m limit --limit 5/min -j RETURN
        $four -A pond -m mark --mark 5/7 -j LOG --log-prefix "pond: "
        $four -A pond -c 5 70 -j REJECT
        $four -t mangle -A OUTPUT -p udp -j MARK --set-mark 9
        $four -t nat -A POSTROUTING -o lo -j MASQUERADE
    done 2> /work/failed
    iptables-{kind} -A INPUT -s 10.7.7.7 -d 10.8.0.0/16 -i lo -j ACCEPT
"""


@needs("command iptables-nft", "command iptables-legacy")
@pytest.mark.parametrize("kind", ["nft", "legacy"])
@pytest.mark.parametrize("has_users", [False, True])
def test_rules_of_iptables_are_the_same(kind: str, has_users: bool, woodfrog: Woodfrog) -> None:
    bundle = bundle_with(woodfrog, IPTABLES.format(kind=kind))
    if has_users:
        give_user_namespace(bundle)
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    assert (bundle.work / "failed").read_text() == ""
    before = saved(container, kind)
    assert len(before) > 40
    assert any("[5:70]" in line for line in before)

    assert saved(woodfrog.restore(bundle, frozen(container)), kind) == before


@needs("command nft")
def test_the_engines_own_rules_are_those_of_the_new_container(woodfrog: Woodfrog) -> None:
    bundle = bundle_with(woodfrog)

    def give_rules(container: Container, port: int) -> None:
        table = f"table ip nat {{ chain dns {{ udp dport 53 redirect to :{port}; }}; }}"
        where = f"--net=/proc/{container.init}/ns/net"
        subprocess.run(["nsenter", where, "nft", table], check=True, timeout=60)

    container = woodfrog.create(bundle)
    give_rules(container, 1111)
    woodfrog("start", container.name)
    container.wait_for("ready")
    inside(container, "nft", "add rule ip nat dns tcp dport 5 drop")
    image = frozen(container)

    thawed = woodfrog.create(bundle)
    give_rules(thawed, 2222)
    woodfrog("restore", "--detach", f"--image-path={image}", thawed.name)

    rules = inside(thawed, "nft", "list ruleset")
    assert ":2222" in rules
    assert "tcp dport 5 drop" in rules
    assert ":1111" not in rules
