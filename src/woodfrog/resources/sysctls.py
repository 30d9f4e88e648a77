"""Settings of the kernel (sysctl) that programs changed in the container's own namespaces."""

import os
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack

from woodfrog.errors import ImageError, UnsupportedResource, while_
from woodfrog.image.record import Record
from woodfrog.kernel import mounts, syscalls
from woodfrog.kernel import namespaces as calls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.procfs.mountinfo import read_mounts
from woodfrog.remote.stub import Stub
from woodfrog.resources import credentials, namespaces

_MOST_BYTES = 4096
_IPC = (
    *(f"kernel/{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem")),
    *(f"kernel/{name}" for name in ("shmall", "shmmax", "shmmni", "shm_rmid_forced")),
    *(f"fs/mqueue/{name}" for name in ("queues_max", "msg_max", "msgsize_max")),
    *(f"fs/mqueue/{name}" for name in ("msg_default", "msgsize_default")),
)
_IPV4 = (
    "ip_forward",
    "ip_default_ttl",
    "ip_local_port_range",
    "ip_local_reserved_ports",
    "ip_no_pmtu_disc",
    "ip_nonlocal_bind",
    "ip_unprivileged_port_start",
    "ping_group_range",
    "icmp_echo_ignore_all",
    "icmp_echo_ignore_broadcasts",
    "tcp_abort_on_overflow",
    "tcp_ecn",
    "tcp_fastopen",
    "tcp_fin_timeout",
    "tcp_keepalive_intvl",
    "tcp_keepalive_probes",
    "tcp_keepalive_time",
    "tcp_max_syn_backlog",
    "tcp_mtu_probing",
    "tcp_notsent_lowat",
    "tcp_orphan_retries",
    "tcp_retries1",
    "tcp_retries2",
    "tcp_rfc1337",
    "tcp_rmem",
    "tcp_sack",
    "tcp_slow_start_after_idle",
    "tcp_syn_retries",
    "tcp_synack_retries",
    "tcp_syncookies",
    "tcp_timestamps",
    "tcp_tw_reuse",
    "tcp_window_scaling",
    "tcp_wmem",
    "udp_rmem_min",
    "udp_wmem_min",
)
_IPV4_OF_DEVICES = (
    "accept_local",
    "accept_redirects",
    "accept_source_route",
    "arp_announce",
    "arp_filter",
    "arp_ignore",
    "forwarding",
    "log_martians",
    "proxy_arp",
    "route_localnet",
    "rp_filter",
    "secure_redirects",
    "send_redirects",
    "shared_media",
)
_IPV6_OF_DEVICES = (
    "disable_ipv6",
    "forwarding",
    "accept_ra",
    "accept_redirects",
    "accept_source_route",
    "autoconf",
    "hop_limit",
)
# What is set for all comes before what is set for one: it may set that, too.
_NETWORK = (
    "net/core/somaxconn",
    "net/unix/max_dgram_qlen",
    *(f"net/ipv4/{name}" for name in _IPV4),
    "net/ipv6/bindv6only",
    "net/ipv6/ip_nonlocal_bind",
    *(
        f"net/{version}/conf/{device}/{name}"
        for version, names in (("ipv4", _IPV4_OF_DEVICES), ("ipv6", _IPV6_OF_DEVICES))
        for device in ("all", "default", "lo")
        for name in names
    ),
)
# What sets all devices (devinet_sysctl_forward(), addrconf_fixup_forwarding(), …_disable_ipv6()).
_SPREADING = {
    "net/ipv4/ip_forward": "net/ipv4/conf/{}/forwarding",
    "net/ipv4/conf/all/forwarding": "net/ipv4/conf/{}/forwarding",
    "net/ipv6/conf/all/forwarding": "net/ipv6/conf/{}/forwarding",
    "net/ipv6/conf/all/disable_ipv6": "net/ipv6/conf/{}/disable_ipv6",
}
# By the names that /proc/PID/ns and config.json have for their namespaces.
_KINDS = (("ipc", "ipc", _IPC), ("net", "network", _NETWORK))


# Directories of a device's settings, and who in them has what new ones get; the defaults of
# neighbours are shown in the first network namespace only.
_OF_DEVICES = {
    "net/ipv4/conf": "default",
    "net/ipv6/conf": "default",
    "net/ipv4/neigh": "lo",
    "net/ipv6/neigh": "lo",
}
# What is another view of what is kept elsewhere.
_TWICE = {"addr_gen_mode", "base_reachable_time", "mtu", "retrans_time", "unres_qlen_bytes"}
_SETTING = re.compile(r"[a-z0-9_]+")


class Sysctls(Record, frozen=True, tag="sysctls"):
    """What was changed, by paths below /proc/sys, in the order in which it is to be set."""

    ipc: list[tuple[str, bytes]]
    network: list[tuple[str, bytes]]


def collect(
    init: int, view: int, own: Collection[str], configured: Mapping[str, str]
) -> Sysctls | None:
    """Compare a container's settings with those of new namespaces and of its config.

    `view` is a process that sees the container from its root, `own` are the namespaces that were
    made for it. Without a writable /proc/sys nobody can have changed anything.
    """
    if _is_read_only(view):
        return None
    usual = _usual()
    usual |= {_path(name): value.encode() for name, value in configured.items()}
    changed: dict[str, list[tuple[str, bytes]]] = {}
    for kind, name, paths in _KINDS:
        changed[name] = []
        if name in own:
            with namespaces.inside(init, kind):
                found = dict(_read(paths))
            differ = {p for p, value in found.items() if value.split() != usual.get(p, b"").split()}
            differ |= {
                _SPREADING[path].format(device)
                for path in differ & _SPREADING.keys()
                for device in ("default", "lo")
            }
            changed[name] = [(path, value) for path, value in found.items() if path in differ]
    return Sysctls(**changed) if any(changed.values()) else None


def changed_here() -> list[tuple[str, bytes]]:
    """Compare the settings of the ipc namespace that we are in with those of a new one."""
    usual = _usual()
    return [(path, value) for path, value in _read(_IPC) if value.split() != usual[path].split()]


def change_here(settings: Collection[tuple[str, bytes]]) -> None:
    """Change settings of the ipc namespace that we are in."""
    for path, value in settings:
        with (
            while_(f"setting {path.replace('/', '.')} to {os.fsdecode(value)}"),
            open(f"/proc/sys/{path}", "wb", buffering=0) as file,
        ):
            file.write(value)


def _is_read_only(view: int) -> bool:
    found = [mount for mount in read_mounts(view) if mount.point in (b"/proc", b"/proc/sys")]
    return not found or "ro" in max(found, key=lambda one: len(one.point)).options.split(",")


def _path(name: str) -> str:
    """Return the path of a setting, whose name has dots or slashes."""
    return name if "/" in name else name.replace(".", "/")


def _read(paths: Collection[str]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        try:
            with open(f"/proc/sys/{path}", "rb") as file:
                yield path, file.read().strip()
        except OSError:
            continue  # not in this kernel


def _usual() -> dict[str, bytes]:
    """Return the settings of new namespaces."""
    found: dict[str, bytes] = {}

    def look() -> None:
        calls.unshare(HERE, calls.CLONE_NEWIPC | calls.CLONE_NEWNET)
        found.update(_read((*_IPC, *_NETWORK)))

    # A thread that ends there takes them along.
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found


def of_device(namespace: int, view: int, device: bytes) -> list[tuple[str, bytes]]:
    """Return how a network device's settings differ from those that a new one gets.

    `namespace` is a descriptor of its network namespace, `view` sees the container from its root.
    """
    if _is_read_only(view):
        return []
    name = os.fsdecode(device)
    found = []
    with namespaces.within(namespace, "net"):
        for place, default in _OF_DEVICES.items():
            usual = dict(_read_directory(f"{place}/{default}"))
            found += [
                (f"{place}/{name}/{setting}", value)
                for setting, value in _read_directory(f"{place}/{name}")
                if usual.get(setting, value) != value
            ]
    return found


def _read_directory(place: str) -> Iterator[tuple[str, bytes]]:
    try:
        names = sorted(set(os.listdir(f"/proc/sys/{place}")) - _TWICE)
    except FileNotFoundError:
        return
    for name in names:
        if os.stat(f"/proc/sys/{place}/{name}").st_mode & 0o200:
            for _, value in _read([f"{place}/{name}"]):
                yield name, value


def are_of_device(settings: Collection[tuple[str, bytes]], device: bytes) -> bool:
    """Tell whether settings are such as `of_device` returns."""
    name = os.fsdecode(device)
    for path, value in settings:
        place, _, setting = path.rpartition("/")
        if place not in {f"{one}/{name}" for one in _OF_DEVICES}:
            return False
        if not _SETTING.fullmatch(setting) or len(value) > _MOST_BYTES:
            return False
    return True


def check(sysctls: Sysctls) -> None:
    """Check that an image sets nothing but what is on the list."""
    check_ipc(sysctls.ipc)
    _check(sysctls.network, _NETWORK)


def check_ipc(settings: Collection[tuple[str, bytes]]) -> None:
    """Check that for the settings of an ipc namespace."""
    _check(settings, _IPC)


def _check(settings: Collection[tuple[str, bytes]], allowed: Collection[str]) -> None:
    if any(path not in allowed or len(value) > _MOST_BYTES for path, value in settings):
        raise ImageError("the image sets what no image does (sysctl)")


def refuse_wider(init: int, sysctls: Sysctls, new: Collection[str]) -> None:
    """Refuse settings that the waiting container could not make; `new` are its own namespaces."""
    for name, found in (("ipc", sysctls.ipc), ("network", sysctls.network)):
        if found and name not in new:
            raise UnsupportedResource(
                f"the image has settings of its own ({found[0][0].replace('/', '.')}), but the new"
                f" container joins a namespace ({name})",
                hint=f'give it one of its own: "{name}" without a path in linux.namespaces',
            )
    if _is_read_only(init):
        first = (*sysctls.ipc, *sysctls.network)[0][0].replace("/", ".")
        raise UnsupportedResource(
            f"the image has changed settings ({first}), and /proc/sys is read-only in the new"
            " container",
            hint="take /proc/sys out of linux.readonlyPaths in config.json",
        )


def restore(stub: Stub, sysctls: Sysctls, *, bounding: int, permitted: int) -> None:
    """Change settings by the stub, with the container's own rights."""
    with ExitStack() as undo:
        program = stub.program()
        credentials.set_effective(program, bounding, permitted)
        stub.run(program)
        undo.callback(_regain, stub, permitted)
        write(stub, (*sysctls.ipc, *sysctls.network))


def write(stub: Stub, settings: Collection[tuple[str, bytes]]) -> None:
    """Change settings by a stub, with the rights that it has."""
    for path, value in settings:
        program = stub.program()
        resolve = mounts.RESOLVE_NO_SYMLINKS
        file = syscalls.openat2(
            program, b"/proc/sys/" + os.fsencode(path), os.O_WRONLY, resolve=resolve
        )
        program.expect(program.call(SYS.WRITE, file, value, len(value)), len(value))
        syscalls.close(program, file)
        with while_(f"setting {path.replace('/', '.')} to {os.fsdecode(value)}"):
            stub.run(program)


def _regain(stub: Stub, permitted: int) -> None:
    program = stub.program()
    credentials.set_effective(program, permitted, permitted)
    stub.run(program)
