"""Packet filters that programs made, and those that the engine gives a container."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile import Attack
from shells import frozen, shell
from test_network import bundle_with, inside
from test_user_ids import give_user_namespace

from bundles import bind
from containers import Container, Woodfrog, verdict
from needs import needs
from woodfrog.kernel.netlink import nf_messages
from woodfrog.kernel.netlink.messages import attribute
from woodfrog.resources.packet_filters.legacy import LegacyTable
from woodfrog.resources.packet_filters.nftables import NfMessage, Nftables

pytestmark = needs("root", "command ip")


@pytest.fixture
def attack(woodfrog: Woodfrog) -> Attack:
    return Attack(woodfrog)


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
    set banned { type ipv4_addr; flags interval, timeout; timeout 30m; gc-interval 10s; elements = {
        10.9.0.0/16, 10.8.1.1 timeout 1h expires 55m, 192.0.2.1-192.0.2.9 comment "a few" } }
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
        tcp flags syn reset tcp option sack-perm; osf ttl loose name "Linux" accept
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


def test_no_image_brings_packet_filters_to_who_may_have_none(attack: Attack) -> None:
    table = NfMessage(number=nf_messages.NEW_TABLE, family=1, attributes=attribute(1, b"pond\0"))
    ruleset = Nftables(messages=[table])
    legacy = LegacyTable(
        family=2, name="filter", hooks=14, begins=[0] * 5, ends=[0] * 5, count=0, entries=b""
    )
    for record in (ruleset, legacy):
        assert "may not do (CAP_NET_ADMIN)" in attack.refusal(record)
    attack.bundle.add_capabilities("CAP_NET_ADMIN")
    namespaces = attack.bundle.config["linux"]["namespaces"]
    namespaces[:] = [one for one in namespaces if one["type"] != "network"]
    namespaces.append({"type": "network", "path": "/proc/self/ns/net"})
    for record in (ruleset, legacy):
        assert "joins a network namespace" in attack.refusal(record)


TURNED = """
table ip turned {
    chain out { type nat hook output priority -100;
        meta l4proto { tcp, udp } th dport 7080 dnat to :7081; }
    chain post { type nat hook postrouting priority 100; ip saddr 127.0.0.7 snat to 127.0.0.8; }
    chain in { type filter hook input priority 0; policy drop;
        ct state established ct mark 42 accept
        ct state new ct mark set 42 accept; }
}
"""


@needs("command nft", "command gcc")
def test_connections_that_are_turned_elsewhere_go_on(
    woodfrog: Woodfrog, build: Callable[..., Path]
) -> None:
    program = build(Path(__file__).parent / "connected" / "natted.c")
    script = f"""
        ip link set lo up
        nft -f - <<'END'
        {TURNED}
END
        exec /programs/{program.name}
    """
    bundle = shell(woodfrog, script)
    bundle.add_capabilities("CAP_NET_ADMIN")
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image)
    container.delete()

    restored = woodfrog.restore(bundle, image)

    # No rule would do for new ones what goes on for these.
    rules = "flush chain ip turned post; flush chain ip turned out; flush chain ip turned in;"
    inside(restored, "nft", f"{rules} add rule ip turned in ct state established ct mark 42 accept")
    assert verdict(restored) == "ok\n"
    assert "conntrack" not in restored.told()
