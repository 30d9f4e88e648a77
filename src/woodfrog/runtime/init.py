"""The inside half of `create`: what the container's first process does before it is the program."""

from __future__ import annotations

import os

from woodfrog.errors import SpecError, WoodfrogError, while_
from woodfrog.kernel import console as tty
from woodfrog.kernel import namespaces as ns
from woodfrog.kernel import netdevice, own_modules, own_program
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.mounts import MS_BIND, new_procfs
from woodfrog.kernel.process import (
    PR_SET_DUMPABLE,
    close_all_from,
    close_on_exec_from,
    prctl,
)
from woodfrog.kernel.signals import signals
from woodfrog.runtime import channel as channels
from woodfrog.runtime import given_network, hooks, jsontext, process, rootfs, spec
from woodfrog.runtime.mount_sources import Sources
from woodfrog.runtime.root import Root, by_descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from woodfrog.kernel.procfs.id_maps import IdMaps
    from woodfrog.runtime.cgroups import Groups
    from woodfrog.runtime.channel import Channel
    from woodfrog.runtime.labels import Labels
    from woodfrog.runtime.mount_sources import Host
    from woodfrog.runtime.seccomp import Profile


class Plan:
    """What the outside half has found out and opened for the inside half."""

    def __init__(self, config: dict[str, Any], bundle: str, root: str, groups: Groups) -> None:
        self.config = config
        self.bundle = bundle
        self.rootfs = root
        self.groups = groups
        self.joined: dict[str, int] = {}  # namespace kind: descriptor
        self.maps: IdMaps | None = None  # of the user namespace, which is always joined
        self.sources: Host | None = None  # what opens the sources of mounts that we can't open
        self.start_fifo = ""
        self.hook_state: dict[str, Any] = {}
        self.new_keyring = ""
        self.preserved = 0
        self.kept: set[int] = set()  # other descriptors that are needed in here
        self.unjoined: list[str] = []  # cgroups that the outside half has to move it to
        self.listen_fds = 0  # so many of the preserved ones are sockets to accept from
        self.pivot = True
        self.debug: Callable[[str], None] = lambda text: None
        self.to_be_restored = False
        # How to wait, never to return, for who makes something else of it.
        self.stand_by: Callable[[], NoReturn] | None = None
        self.overlay: tuple[str, str] | None = None  # lower directory, scratch directory
        self.seccomp: Profile | None = None
        self.labels: Labels = []


def run(plan: Plan, channel: Channel, enter_cgroups: Callable[[], None]) -> NoReturn:
    """Be the container's first process; never returns to the caller's code."""
    for number in (signals.SIGHUP, signals.SIGINT, signals.SIGQUIT, signals.SIGTERM):
        # The first process of a pid namespace gets only those signals that it handles.
        signals.signal(number, _end)
    try:
        enter_cgroups()
        fifo = None if plan.stand_by else StartFifo(plan.start_fifo)
        tell_network = given_network.teller(plan.config)
        plan.kept |= channel.descriptors | set(plan.joined.values())
        if fifo:
            plan.kept |= fifo.descriptors
        path, master = _set_up(plan, channel)
        plan.debug("init: closing the pipe to signal completion")
        channel.send(step="ready", console=master)
        if master >= 0 and channel.receive() == {"step": "taken"}:
            os.close(master)
        channel.close()
        if plan.stand_by:
            plan.stand_by()
        assert fifo
        _wait_and_become(plan, path, fifo, tell_network)
    except BaseException as error:
        try:
            channel.send_error(error)
        finally:
            os._exit(1)


def _end(number: int, frame: object) -> NoReturn:
    os._exit(128 + number)


def _set_up(plan: Plan, channel: Channel) -> tuple[str, int]:
    # Until exec nobody in the container may look into this process, which still knows the host.
    prctl(HERE, PR_SET_DUMPABLE, 0)
    if not plan.maps and not plan.to_be_restored:
        own_program.make_read_only()
    # What the caller has open is no business of the container's, however long it waits.
    close_all_from(HERE, 3 + plan.preserved, plan.kept)
    # Whatever turns this process into something else, what we have opened ends there.
    close_on_exec_from(HERE, 3 + plan.preserved)
    plan.debug(f"nsexec[{os.getpid()}]: => nsexec container setup")
    config = plan.config
    wanted = config["process"]
    if (score := wanted.get("oomScoreAdj")) is not None:
        set_oom_score(score)
    _enter_namespaces(plan, channel)
    os.setsid()
    process.leave_keyring(plan.new_keyring)
    if plan.overlay:
        rootfs.overlay(*plan.overlay, plan.rootfs)
    ask = plan.sources.asker(channel) if plan.sources else None
    sources = Sources(config, plan.bundle, plan.rootfs, ask)
    root = rootfs.prepare(config, sources, plan.groups, in_user_namespace=plan.maps is not None)
    _set_sysctls(config)
    master = _make_console(root, wanted) if wanted.get("terminal") else -1
    # Meanwhile the outside half has put us into those cgroups that we couldn't enter ourselves.
    # Only what a new cgroup namespace shows depends on it.
    if (message := channel.receive()) is None:
        os._exit(1)
    plan.hook_state["pid"] = message["pid"]
    plan.debug("child process in init()")
    process.reset_affinity()
    if spec.namespaces(config).get("cgroup") == "":
        ns.unshare(HERE, ns.CLONE_NEWCGROUP)
    if any(
        hooks.listed(config, moment) for moment in ("prestart", "createRuntime", "createContainer")
    ):
        channel.send(step="hooks")
        if channel.receive() is None:
            os._exit(1)
    # Hooks that still see the host's paths find the container's root where they are.
    os.fchdir(root.descriptor)
    hooks.run(config, "createContainer", plan.hook_state | {"status": "creating"})
    with while_("protecting paths in the container"):
        rootfs.seal(root, config)
    rootfs.enter(root, config, pivot=plan.pivot)
    if wanted:
        process.make_cwd(wanted)
    path = ""
    if wanted and not plan.to_be_restored:
        path = process.find_executable(wanted)
    process.check_rights(wanted)
    process.take_own_null()
    process.give_stdio(wanted)
    if not plan.to_be_restored:
        process.apply_scheduling(wanted, config)
    umask = (wanted.get("user") or {}).get("umask")
    os.umask(0o022 if umask is None else umask)
    return path, master


class StartFifo:
    """The FIFO in the state directory that `start` reads, held by what shows no more of the host.

    Who enters the waiting container with the right to trace can look at what init holds.
    """

    def __init__(self, path: str) -> None:
        self._fifo = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            self._proc = new_procfs(HERE)
        except OSError:
            self._proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)  # a filter around us forbids it
        self.descriptors = {self._fifo, self._proc}

    def open(self) -> int:
        """Wait until somebody reads it, and return a descriptor to write to."""
        path = f"self/fd/{self._fifo}"
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._proc)


def _wait_and_become(
    plan: Plan, path: str, start_fifo: StartFifo, tell_network: Callable[[int], None] | None
) -> NoReturn:
    """Wait until `start` opens the other end; from then on, an error's text goes there."""
    fifo = start_fifo.open()
    wanted = plan.config["process"]
    if tell_network:
        tell_network(fifo)
    if plan.listen_fds:
        listening = [f"LISTEN_FDS={plan.listen_fds}", f"LISTEN_PID={os.getpid()}"]
        wanted["env"] = [*(wanted.get("env") or []), *listening]
    state = plan.hook_state | {"status": "created"}
    taken = os.eventfd(0) if plan.seccomp and plan.seccomp.listener_path else -1

    def hand_over(listener: int) -> None:
        message = jsontext.write({"listener": listener, "taken": taken})
        os.write(fifo, message.encode() + b"\n")
        os.eventfd_read(taken)

    def run_hooks() -> None:
        hooks.run(plan.config, "startContainer", state, process.environment(wanted))

    try:
        if not wanted:
            raise SpecError("process is missing in config.json: there is nothing to start")
        process.become(
            wanted, path, plan.preserved, plan.seccomp, plan.labels, hand_over, run_hooks
        )
    except BaseException as error:
        text = jsontext.write(channels.describe(error))
        os.write(fifo, text.encode())
        os._exit(127)


def _enter_namespaces(plan: Plan, channel: Channel) -> None:
    """Enter what is to be joined, with the host's rights, and then make what is to be new."""
    wanted = spec.namespaces(plan.config)
    # The mount namespace comes last: paths of the host are gone then.
    for kind, descriptor in sorted(plan.joined.items(), key=lambda item: item[0] == "mount"):
        if kind not in ("pid", "user"):
            if kind == "mount":
                from woodfrog.runtime.user_namespace import load_rest

                load_rest()
                own_modules.load_no_more()
            with while_(f"joining the {kind} namespace {wanted[kind]}"):
                ns.setns(HERE, descriptor, spec.NAMESPACES[kind][0])
    if plan.maps:
        from woodfrog.runtime import user_namespace

        user_namespace.leave_host(plan.config["process"], plan.maps)
        user_namespace.enter(plan.joined["user"])
    flags = 0
    for kind, path in wanted.items():
        # Without a user namespace, the outside half has made the one for pids.
        if not path and kind not in ("cgroup", "user") and (kind != "pid" or plan.maps):
            flags |= spec.NAMESPACES[kind][0]
    ns.unshare(HERE, flags)
    if "network" in wanted and not wanted["network"]:
        netdevice.set_up(HERE, "lo")
    if "time" in wanted and not wanted["time"]:
        from woodfrog.runtime import clocks

        if plan.maps:
            channel.send(step="clocks")
            channel.receive()
        else:
            clocks.write("self", plan.config)
        clocks.enter()
    if name := plan.config.get("hostname"):
        ns.sethostname(HERE, name)
    if name := plan.config.get("domainname"):
        ns.setdomainname(HERE, name)
    if plan.maps and wanted.get("pid") == "":
        user_namespace.go_on_as_child(channel)
    elif plan.maps:
        channel.send(step="entered")


def set_oom_score(score: int) -> None:
    """Set our own badness for the OOM killer, unless it is that already."""
    with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
        has = int(file.readall())
        if has != score:
            try:
                file.write(b"%d" % score)
            except OSError as error:
                raise WoodfrogError(
                    f"cannot set process.oomScoreAdj from {has} to {score}: {error.strerror}",
                    hint="lowering it needs CAP_SYS_RESOURCE",
                ) from None


# Settings of the kernel that each IPC namespace has for itself.
_IPC_SYSCTLS = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
]


def _set_sysctls(config: dict[str, Any]) -> None:
    wanted = spec.namespaces(config)
    for name, value in ((config.get("linux") or {}).get("sysctl") or {}).items():
        dotted = name.replace("/", ".")
        if dotted in _IPC_SYSCTLS or dotted.startswith("fs.mqueue."):
            needs = "ipc"
        elif dotted.startswith("net."):
            needs = "network"
        elif dotted == "kernel.domainname":
            needs = "uts"
        else:
            raise SpecError(
                f"linux.sysctl: {name} belongs to no namespace: it would change the host",
                hint="set it on the host, or take it out of the config",
            )
        if needs not in wanted:
            raise SpecError(
                f"linux.sysctl: {name} needs a {needs} namespace of the container's own"
            )
        # Both notations are in use; in the one with slashes a dot is part of a name (eth0.1).
        path = "/proc/sys/" + (name if "/" in name else name.replace(".", "/"))
        try:
            with open(path, "wb", buffering=0) as file:
                file.write(value.encode())
        except OSError as error:
            raise WoodfrogError(f"cannot set sysctl {name} to {value}: {error.strerror}") from None


def _make_console(root: Root, wanted: dict[str, Any]) -> int:
    """Make a pseudo-terminal in the container's own devpts and make it our stdio; its master is
    kept, for the outside half or `restore` to fetch, until exec."""
    master, terminal = open_terminal(root.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY), wanted)
    at = root.open_or_make("/dev/console", directory=False)
    root.mount(by_descriptor(terminal), at, None, MS_BIND)
    os.close(at)
    use_terminal(terminal)
    return master


def open_terminal(master: int, wanted: dict[str, Any]) -> tuple[int, int]:
    """Return (master, terminal) of a master just opened, in the size that the config asks for."""
    tty.unlock(master)
    terminal = tty.open_peer(master)
    size = wanted.get("consoleSize") or {}
    if size.get("height") and size.get("width"):
        tty.set_window_size(master, size["height"], size["width"])
    uid = (wanted.get("user") or {}).get("uid") or 0
    if uid:
        os.fchown(terminal, uid, -1)
    return master, terminal


def use_terminal(terminal: int) -> None:
    """Make a terminal our controlling one and our stdio."""
    tty.make_controlling(terminal)
    for descriptor in (0, 1, 2):
        os.dup2(terminal, descriptor)
    os.close(terminal)
