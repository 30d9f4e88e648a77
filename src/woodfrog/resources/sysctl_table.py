"""Which settings of the kernel (sysctl) are a namespace's own: of ipc, network, or its devices."""

import os
import re
from collections.abc import Iterator
from functools import cache

IPC = (
    *(f"kernel/{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem")),
    *(f"kernel/{name}" for name in ("shmall", "shmmax", "shmmni", "shm_rmid_forced")),
    *(f"fs/mqueue/{name}" for name in ("queues_max", "msg_max", "msgsize_max")),
    *(f"fs/mqueue/{name}" for name in ("msg_default", "msgsize_default")),
)
_CORE = (
    *("optmem_max", "rps_default_mask", "somaxconn", "tstamp_allow_data", "txrehash"),
    *("xfrm_acq_expires", "xfrm_aevent_etime", "xfrm_aevent_rseqth", "xfrm_larval_drop"),
)
# Where else a network namespace has settings of its own.
_PLACES = ("net/unix", "net/ipv4", "net/ipv6", "net/netfilter", "net/bridge", "net/mptcp")
# Not a namespace's own, or no setting.
_EVERYBODYS = {
    "net/ipv4/cipso_cache_bucket_size",
    "net/ipv4/cipso_cache_enable",
    "net/ipv4/cipso_rbm_optfmt",
    "net/ipv4/cipso_rbm_strictvalid",
    "net/ipv4/fib_sync_mem",
    "net/ipv4/inet_peer_maxttl",
    "net/ipv4/inet_peer_minttl",
    "net/ipv4/inet_peer_threshold",
    "net/ipv4/route/error_burst",
    "net/ipv4/route/error_cost",
    "net/ipv4/route/flush",
    "net/ipv4/route/gc_elasticity",
    "net/ipv4/route/gc_interval",
    "net/ipv4/route/gc_min_interval",
    "net/ipv4/route/gc_min_interval_ms",
    "net/ipv4/route/gc_thresh",
    "net/ipv4/route/gc_timeout",
    "net/ipv4/route/max_size",
    "net/ipv4/route/redirect_load",
    "net/ipv4/route/redirect_number",
    "net/ipv4/route/redirect_silence",
    "net/ipv4/tcp_allowed_congestion_control",
    "net/ipv4/tcp_low_latency",
    "net/ipv4/tcp_max_orphans",
    "net/ipv4/tcp_mem",
    "net/ipv4/udp_mem",
    "net/ipv6/calipso_cache_bucket_size",
    "net/ipv6/calipso_cache_enable",
    "net/ipv6/mld_max_msf",
    "net/ipv6/route/flush",
    "net/netfilter/nf_conntrack_buckets",
    "net/netfilter/nf_conntrack_expect_max",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_hooks_lwtunnel",
    "net/netfilter/nf_log_all_netns",
}
# Of devices, what is set for all comes before what is set for one: it may set that, too.
_SHARED_DEVICES = ("all", "default", "lo")
# What sets all devices (devinet_sysctl_forward(), addrconf_fixup_forwarding(), …_disable_ipv6()).
SPREADING = {
    "net/ipv4/ip_forward": "net/ipv4/conf/{}/forwarding",
    "net/ipv4/conf/all/forwarding": "net/ipv4/conf/{}/forwarding",
    "net/ipv6/conf/all/forwarding": "net/ipv6/conf/{}/forwarding",
    "net/ipv6/conf/all/disable_ipv6": "net/ipv6/conf/{}/disable_ipv6",
    "net/ipv6/conf/all/addr_gen_mode": "net/ipv6/conf/{}/addr_gen_mode",
}
# Directories of a device's settings, and who in them has what new ones get. The defaults of
# neighbours are shown in the first network namespace only: they are what lo has in a new one.
_DEFAULT, NEW = "default", "lo"
OF_DEVICES = {
    "net/ipv4/conf": _DEFAULT,
    "net/ipv6/conf": _DEFAULT,
    "net/ipv4/neigh": NEW,
    "net/ipv6/neigh": NEW,
}
# What is another view of what is kept elsewhere: of devices and neighbours, and of devices only.
_TWICE = {"base_reachable_time", "retrans_time", "unres_qlen"}
_TWICE_OF_DEVICES = {"addr_gen_mode", "mtu"}
TWICE = _TWICE | _TWICE_OF_DEVICES
SETTING = r"[a-z0-9_]+"
_PATH = r"net(/[a-z0-9_-]+)+"


def network() -> list[str]:
    """Return the paths of all settings of the network namespace that we are in, in order."""
    found = [path for place in _PLACES for path in _within(place) if is_networks(path)]
    core = [f"net/core/{name}" for name in _CORE]
    return core + sorted(found, key=lambda one: ("/conf/" in one, one))


def _within(place: str) -> Iterator[str]:
    try:
        entries = list(os.scandir(f"/proc/sys/{place}"))
    except FileNotFoundError:
        return  # not in this kernel
    for entry in entries:
        path = f"{place}/{entry.name}"
        if not entry.is_dir():
            yield path
        elif not place.endswith(("/conf", "/neigh")) or entry.name in _SHARED_DEVICES:
            yield from _within(path)


@cache
def is_networks(path: str) -> bool:
    """Tell whether a path is that of a setting of a network namespace that is no device's."""
    if not re.fullmatch(_PATH, path) or path in _EVERYBODYS:
        return False
    parts = path.split("/")
    if parts[1] == "core":
        return len(parts) == 3 and parts[2] in _CORE
    if parts[2] in ("conf", "neigh"):
        twice = TWICE if parts[3] == "lo" else _TWICE
        return len(parts) == 5 and parts[3] in _SHARED_DEVICES and parts[4] not in twice
    return "/".join(parts[:2]) in _PLACES
