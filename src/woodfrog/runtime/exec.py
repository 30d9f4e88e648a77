"""Another process in a running container: it joins the namespaces and cgroup, then execs."""

from __future__ import annotations

import os

from woodfrog.errors import StateError, UsageError, WoodfrogError
from woodfrog.kernel import namespaces as ns
from woodfrog.kernel import own_modules, own_program
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import PR_SET_DUMPABLE, close_all_from, pidfd_open, prctl
from woodfrog.runtime import cgroups, delivery, forking, init, process
from woodfrog.runtime import channel as channels
from woodfrog.runtime.cgroups import places
from woodfrog.runtime.foreground import Attached, adopt_terminal, hold_signals
from woodfrog.runtime.spec import NAMESPACES
from woodfrog.runtime.state import PAUSED, RUNNING, Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from woodfrog.runtime.labels import Labels
    from woodfrog.runtime.seccomp import Profile


class Request:
    """What is to be run, and how its console and pid are handed over."""

    def __init__(self, process: dict[str, Any], config: dict[str, Any]) -> None:
        self.process = process
        self.config = config  # the container's
        self.detach = False
        self.console_socket = ""
        self.pid_file = ""
        self.pidfd_socket = ""
        self.preserve_fds = 0
        self.ignore_paused = False
        self.cgroups: list[str] = []  # groups inside the container's own, as --cgroup names them
        self.seccomp: Profile | None = None
        self.stdio: tuple[int, int, int] | None = None  # other than ours
        self.debug: Callable[[str], None] = lambda text: None
        self.debug_descriptor = -1  # what `debug` writes to


def inherit(process: dict[str, Any], base: dict[str, Any]) -> None:
    """Fill in what a process object that was given leaves to the container's own."""
    for name in ("capabilities", "oomScoreAdj"):
        if process.get(name) is None and base.get(name) is not None:
            process[name] = base[name]
    for name in (
        "rlimits",
        "scheduler",
        "ioPriority",
        "execCPUAffinity",
        "apparmorProfile",
        "selinuxLabel",
    ):
        if not process.get(name) and base.get(name):
            process[name] = base[name]
    umask = (base.get("user") or {}).get("umask")
    user = process.get("user") or {}
    if umask is not None and user.get("umask") is None:
        process["user"] = user | {"umask": umask}


def begin(container: Container, request: Request) -> tuple[int, int]:
    """Start a process in the container; returns its pid, and its terminal's master or -1."""
    terminal = bool(request.process.get("terminal"))
    if request.console_socket and not terminal:
        raise UsageError("--console-socket is given, but the process asks for no terminal")
    if terminal and request.detach and not request.console_socket:
        raise UsageError("a detached process with a terminal needs --console-socket")
    process.rlimits(request.process)
    if process.asks_for_scheduling(request.process, request.config):
        from woodfrog.runtime import scheduling

        scheduling.check(request.process, {})
    with container.lock():
        container.reload()
        groups = places.below(container.state["cgroup"], request.cgroups)
        paused = container.require("exec") == PAUSED
        if paused and not request.ignore_paused:
            raise StateError(
                "cannot exec in a paused container",
                hint=f"resume {container.id} first, or give --ignore-paused",
            )
        if not paused:
            pid, master = _start(container, groups, request)
    if paused:
        # It starts when the container is resumed, for which others need the lock.
        pid, master = _start(container, groups, request)
    return pid, master


def run(container: Container, request: Request) -> int:
    """Run a process in the container; attached, the result is its exit status."""
    if not request.detach:
        hold_signals()
    pid, master = begin(container, request)
    try:
        if request.pidfd_socket:
            delivery.send_pidfd(request.pidfd_socket, pid)
        if request.pid_file:
            delivery.write_pid_file(request.pid_file, pid)
        if master >= 0 and request.console_socket:
            delivery.send_console(request.console_socket, master)
            os.close(master)
            master = -1
    except BaseException:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        raise
    if request.detach:
        return 0
    with Attached(pid, master, is_child=True) as attached:
        return attached.wait()


def _start(container: Container, groups: cgroups.Groups, request: Request) -> tuple[int, int]:
    """Fork the process into the container and wait for its exec; returns (pid, master)."""
    target = pidfd_open(HERE, container.pid)
    ours, theirs = channels.pair()
    own_pid_namespace = _same_namespace(container.pid, "pid")
    joined = -1 if own_pid_namespace else _open_pid_namespace(container.pid)
    try:
        flags = _namespaces_to_join(container.pid)
        pid = forking.fork_into_pid_namespace(None if own_pid_namespace else "joined", joined)
        if pid == 0:
            ours.close()
            _inside(container, target, flags, request, theirs)
        theirs.close()
        try:
            _join_cgroups(container, groups, request, pid)
            ours.send(step="go")
            message = ours.receive()
            if message is None:
                raise WoodfrogError("the new process ended before its exec")
            master = -1
            if message["console"] >= 0:
                master = delivery.fetch_descriptor(pid, message["console"])
                if not request.console_socket:
                    adopt_terminal(master)
            ours.send(step="go")
            # The end comes at its exec.
            while message := ours.receive():
                _take_listener(container, request, pid, message["listener"])
                ours.send(step="go")
        except BaseException:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            raise
        return pid, master
    finally:
        ours.close()
        os.close(target)
        if joined >= 0:
            os.close(joined)


def _take_listener(container: Container, request: Request, pid: int, listener: int) -> None:
    from woodfrog.runtime.seccomp_listener import pass_on

    pass_on(request.config, container, RUNNING, pid, listener)


def _same_namespace(pid: int, name: str) -> bool:
    try:
        own = os.readlink(f"/proc/self/ns/{name}")
    except FileNotFoundError:
        return True  # this kernel has none of that kind
    return os.readlink(f"/proc/{pid}/ns/{name}") == own


def _open_pid_namespace(pid: int) -> int:
    return os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)


def _namespaces_to_join(pid: int) -> int:
    flags = 0
    for flag, name in NAMESPACES.values():
        if name != "pid" and not _same_namespace(pid, name):
            flags |= flag
    return flags


def _join_cgroups(container: Container, groups: cgroups.Groups, request: Request, pid: int) -> None:
    for directory in cgroups.directories(groups):
        try:
            cgroups.write(directory, "cgroup.procs", str(pid))
        except OSError as error:
            if groups["version"] == 1 or request.cgroups:
                reason = (error.strerror or "").lower()
                raise WoodfrogError(
                    f"error adding pid {pid} to cgroups: {directory}/cgroup.procs: {reason}"
                ) from None
            # v2 refuses a group that has groups below it with controllers: join init's own.
            cgroups.write(places.group_of_init(container.pid, directory), "cgroup.procs", str(pid))


def _inside(
    container: Container, target: int, flags: int, request: Request, channel: channels.Channel
) -> NoReturn:
    def hand_over(listener: int) -> None:
        channel.send(listener=listener)
        if channel.receive() is None:
            os._exit(1)

    try:
        prctl(HERE, PR_SET_DUMPABLE, 0)
        if not flags & ns.CLONE_NEWUSER:
            own_program.make_read_only()
        for number, descriptor in enumerate(request.stdio or ()):
            os.dup2(descriptor, number)
        kept = channel.descriptors | {target, request.debug_descriptor}
        close_all_from(HERE, 3 + request.preserve_fds, kept)
        os.setsid()
        _choose_processors(request, "initial")
        if channel.receive() is None:
            os._exit(1)
        wanted = request.process
        _choose_processors(request, "final")
        if (score := wanted.get("oomScoreAdj")) is not None:
            init.set_oom_score(score)
        request.debug(f"nsexec[{os.getpid()}]: => nsexec container setup")
        root = -1
        if "mountedOnHost" in container.state:
            root = os.open(f"/proc/{container.pid}/root", os.O_PATH | os.O_CLOEXEC)
        labels = _choose_labels(wanted)
        _enter(container, target, flags, wanted)
        if root >= 0:
            os.fchdir(root)
            os.chroot(".")
        process.leave_keyring(container.state.get("keyring", ""))
        request.debug("child process in init()")
        master = _open_console(wanted) if wanted.get("terminal") else -1
        path = process.find_executable(wanted)
        process.check_rights(wanted)
        if master < 0:
            process.take_own_null()
            process.give_stdio(wanted)
        process.apply_scheduling(wanted, request.config)
        umask = (wanted.get("user") or {}).get("umask")
        os.umask(0o022 if umask is None else umask)
        channel.send(console=master)
        if channel.receive() is None:
            os._exit(1)
        request.debug("setns_init: about to exec")
        process.become(wanted, path, request.preserve_fds, request.seccomp, labels, hand_over)
    except BaseException as error:
        try:
            channel.send_error(error)
        finally:
            os._exit(255)


def _choose_labels(wanted: dict[str, Any]) -> Labels:
    if not (wanted.get("apparmorProfile") or wanted.get("selinuxLabel")):
        return []
    from woodfrog.runtime import labels

    return labels.choose(wanted)


def _enter(container: Container, target: int, flags: int, wanted: dict[str, Any]) -> None:
    if not flags & ns.CLONE_NEWUSER:
        own_modules.load_no_more()
        ns.setns(HERE, target, flags)
        return
    from woodfrog.kernel.procfs.id_maps import read_id_maps
    from woodfrog.runtime import user_namespace

    user_namespace.leave_host(wanted, read_id_maps(container.pid))
    own_modules.load_no_more()
    ns.setns(HERE, target, flags)
    user_namespace.become_root()


def _choose_processors(request: Request, when: str) -> None:
    """Run where execCPUAffinity says, before or after the cgroup is joined; else everywhere."""
    affinity = request.process.get("execCPUAffinity") or {}
    if affinity.get(when):
        from woodfrog.kernel.scheduling import set_affinity
        from woodfrog.runtime.scheduling import processors

        where = f"process.execCPUAffinity.{when}"
        try:
            set_affinity(HERE, 0, processors(affinity[when], where))
        except OSError as error:
            raise WoodfrogError(f"cannot set {where}: {error.strerror}") from None
    elif when == "final" and not affinity:
        process.reset_affinity()
    if when == "initial" and request.debug_descriptor >= 0:
        from woodfrog.kernel.scheduling import get_affinity

        request.debug(f"nsexec[{os.getpid()}]: affinity: {get_affinity(HERE, 0):#x}")


def _open_console(wanted: dict[str, Any]) -> int:
    opened = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    master, terminal = init.open_terminal(opened, wanted)
    init.use_terminal(terminal)
    return master
