"""The outside half of creating a container; whatever fails, nothing is left behind."""

from __future__ import annotations

import os

from woodfrog.errors import SpecError, UsageError, WoodfrogError
from woodfrog.kernel.caller import HERE
from woodfrog.runtime import cgroups, delivery, forking, hooks, init, process, spec
from woodfrog.runtime import channel as channels
from woodfrog.runtime import state as states
from woodfrog.runtime.cgroups import limits, places
from woodfrog.runtime.foreground import adopt_terminal
from woodfrog.runtime.state import Container
from woodfrog.runtime.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from woodfrog.runtime.births import Midwife


class Request:
    """What is to be created, and how its console and pid are handed over."""

    def __init__(self, root: str, id: str, bundle: str, config_text: bytes) -> None:
        self.root = root
        self.id = id
        self.bundle = bundle
        self.config_text = config_text
        self._config: Any = None
        self.console_socket = ""
        self.pid_file = ""
        self.preserve_fds = 0
        self.listen_fds = 0  # sockets from 3 up, before those to preserve
        self.pidfd_socket = ""
        self.notify_socket = ""  # of the host, where the program's READY=1 goes
        self.pivot = True
        self.systemd_cgroup = False  # systemd makes the cgroups
        self.new_keyring = True
        self.to_be_restored = False  # its own program never runs, and needn't be there
        self.stand_by: Callable[[], NoReturn] | None = None  # how its init waits then, if it knows
        self.relay_console = False  # we stay and pass bytes between our stdio and its terminal
        self.options: dict[str, Any] = {}  # global options, recorded in the state
        self.midwife: Midwife | None = None  # has the init born elsewhere
        self.scratch_over = ""  # `do`: the directory that is shown under a scratch layer
        self.warn: Callable[[str], None] = lambda text: None
        self.debug: Callable[[str], None] = lambda text: None
        self.debug_descriptor = -1  # what `debug` writes to
        # Work that the caller has to do anyway, done while init prepares the container.
        self.meanwhile: Callable[[], object] = lambda: None
        # What must be done when its namespaces, of this pid, are there and nobody knows them yet.
        self.before_hooks: Callable[[int], object] = lambda pid: None

    @property
    def config(self) -> Any:
        """What the config says; it is checked and completed when the container is created."""
        if self._config is None:
            self._config = spec.parse(self.config_text, "config.json")
        return self._config


class Created:
    """A created container whose init waits; the console's master if we are to relay it."""

    def __init__(self, container: Container, config: dict[str, Any], master: int) -> None:
        self.container = container
        self.config = config
        self.master = master


def create(request: Request) -> Created:
    """Make the container, up to its init that waits for `start` or `restore`."""
    config = request.config
    midwife = request.midwife
    if midwife and midwife.known == request.config_text:
        spec.complete(config)
    elif not _check(request, config) and midwife:
        midwife.known = request.config_text
    _check_console(request, config)
    with Undo() as undo:
        container = Container.new(request.root, request.id)
        undo.callback(container.remove)
        with container.lock() as lock:
            created = _create(request, config, container, lock, undo)
        undo.forget()
    return created


def _check(request: Request, config: dict[str, Any]) -> bool:
    """Check and complete the config, whatever the host is like; tells whether there are warnings.

    Raises SpecError.
    """
    warnings = spec.check(config)
    spec.complete(config)
    if request.to_be_restored and "mount" not in spec.namespaces(config):
        raise SpecError("restoring needs a mount namespace, and linux.namespaces has none")
    warnings += process.capability_masks(config["process"])[1]
    if labels_in(config):
        from woodfrog.runtime import labels

        warnings += labels.warnings(config["process"], config.get("linux") or {})
    for warning in warnings:
        request.warn(warning)
    # Errors in these before anything is made.
    process.rlimits(config["process"])
    if process.asks_for_scheduling(config["process"], config):
        from woodfrog.runtime import scheduling

        scheduling.check(config["process"], config.get("linux") or {})
    if (config.get("linux") or {}).get("netDevices"):
        from woodfrog.runtime import net_devices

        net_devices.names(config["linux"])
    return bool(warnings)


def labels_in(config: dict[str, Any]) -> bool:
    """Tell whether a config names what security modules know."""
    named = config["process"].get("apparmorProfile") or config["process"].get("selinuxLabel")
    return bool(named or (config.get("linux") or {}).get("mountLabel"))


def _check_console(request: Request, config: dict[str, Any]) -> None:
    if request.console_socket and not config["process"].get("terminal"):
        raise UsageError(
            "--console-socket is given, but the config doesn't ask for a terminal",
            hint="set process.terminal to true, or leave the flag out",
        )


def _create(
    request: Request,
    config: dict[str, Any],
    container: Container,
    lock: states.Lock,
    undo: Undo,
) -> Created:
    linux = config.get("linux") or {}
    groups = _plan_cgroups(request, linux.get("cgroupsPath") or "")
    cgroups.check_unused(groups)
    rootfs = (
        container.path("rootfs") if request.scratch_over else spec.rootfs(config, request.bundle)
    )
    container.state = {
        "ociVersion": config["ociVersion"],
        "id": request.id,
        "bundle": request.bundle,
        "rootfs": rootfs,
        "created": states.now(),
        "bootId": states.boot_id(),
        "cgroup": groups,
        "stdio": [_inode_at(number) for number in range(3)],
        "ownPids": spec.namespaces(config).get("pid") == "",
        "keyring": f"_ses.{request.id}" if request.new_keyring else "",
        "annotations": config.get("annotations") or {},
        "options": request.options,
    }
    container.save()  # from here on `delete` can clean up after us, should we be killed
    container.write("config.json", request.config_text)
    if request.notify_socket:
        from woodfrog.runtime import notify

        notify.offer(container, config)
    plan = init.Plan(config, request.bundle, rootfs, groups)
    plan.preserved = request.listen_fds + request.preserve_fds
    plan.listen_fds = request.listen_fds
    plan.pivot = request.pivot
    plan.debug = request.debug
    plan.kept.add(request.debug_descriptor)
    plan.to_be_restored = request.to_be_restored
    plan.stand_by = request.stand_by
    plan.new_keyring = container.state["keyring"]
    if request.scratch_over:
        plan.overlay = _make_scratch(request, container, undo)
    if labels_in(config):
        from woodfrog.runtime import labels

        plan.labels = labels.choose(config["process"])
    if linux.get("seccomp"):
        from woodfrog.runtime import seccomp

        plan.seccomp = seccomp.compile(linux["seccomp"])
        if plan.seccomp:
            request.debug(f"seccomp filter flags: {plan.seccomp.flags}")
    if "mount" not in spec.namespaces(config):
        _bind_root_on_host(container, undo)
    made = cgroups.make(groups)
    undo.callback(cgroups.remove_made, made)
    if "unit" in groups:
        undo.callback(cgroups.remove, groups)  # systemd sets limits when there is a process
    else:
        limits.apply(groups, linux.get("resources") or {}, request.warn)
    os.mkfifo(container.path("exec.fifo"), 0o622)
    plan.hook_state = hooks.state_of(container, "creating")
    if request.midwife:
        request.midwife.check(plan)
    pid, channel = forking.fork_init(plan, container, lock, undo, request.midwife)
    master = _guide(request, plan, container, pid, channel, undo)
    container.save()
    if request.pidfd_socket:
        delivery.send_pidfd(request.pidfd_socket, pid)
    if request.pid_file:
        delivery.write_pid_file(request.pid_file, pid)
    return Created(container, config, master)


def _bind_root_on_host(container: Container, undo: Undo) -> None:
    """Without a mount namespace, have all mounts of the container in one that we can take away."""
    from woodfrog.kernel import mounts

    rootfs = container.state["rootfs"]
    mounts.mount(HERE, rootfs, rootfs, None, mounts.MS_BIND | mounts.MS_REC)
    undo.callback(mounts.umount, HERE, rootfs, mounts.MNT_DETACH)
    mounts.mount(HERE, None, rootfs, None, mounts.MS_PRIVATE | mounts.MS_REC)
    container.state["mountedOnHost"] = rootfs
    container.save()


def _inode_at(number: int) -> tuple[int, int]:
    """Return device and inode of one of our descriptors, by which a checkpoint knows it again."""
    try:
        found = os.fstat(number)
    except OSError:
        return (0, 0)
    return found.st_dev, found.st_ino


def _plan_cgroups(request: Request, path: str) -> cgroups.Groups:
    """Return the groups; ids are one's own in each root, so those without a path are, too."""
    if request.systemd_cgroup:
        from woodfrog.runtime.cgroups import systemd

        return systemd.plan(path, request.id)
    if not path.strip("/") and request.root != states.DEFAULT_ROOT:
        root = request.root.strip("/").replace("/", "-")[-200:]  # a name has at most 255 bytes
        path = f"{cgroups.OUR_PARENT}@{root}/{request.id}"
    return places.of_container(path, request.id)


def _make_scratch(request: Request, container: Container, undo: Undo) -> tuple[str, str]:
    """Mount the tmpfs that takes what `do` writes; returns (lower directory, scratch)."""
    from woodfrog.kernel import mounts

    scratch = container.path("scratch")
    os.mkdir(scratch, 0o700)
    os.mkdir(container.path("rootfs"), 0o755)
    mounts.mount(HERE, "woodfrog-scratch", scratch, "tmpfs", 0, "mode=700")
    undo.callback(mounts.umount, HERE, scratch, mounts.MNT_DETACH)
    for name in ("upper", "work"):
        os.mkdir(f"{scratch}/{name}", 0o755)
    container.state["scratch"] = scratch
    container.save()
    return request.scratch_over, scratch


def _guide(
    request: Request,
    plan: init.Plan,
    container: Container,
    pid: int,
    channel: channels.Channel,
    undo: Undo,
) -> int:
    """Lead the init through its preparation; returns the console's master if we relay it."""
    found = states.start_time(pid)
    container.state |= {"pid": pid, "startTime": found[1] if found else ""}
    try:
        _join_cgroups(request, plan, pid)
        channel.send(step="go", pid=pid)
    except (ProcessLookupError, channels.Gone):
        pass  # it failed meanwhile, and has said why
    request.meanwhile()
    devices = (plan.config.get("linux") or {}).get("netDevices")
    while message := channel.receive():
        if message["step"] in ("ready", "hooks") and devices:
            _move_devices(plan.config["linux"], pid, undo)
            devices = None
        if message["step"] == "ready":
            container.state["mounts"] = _mounts(pid)
            container.state["userNamespace"] = os.readlink(f"/proc/{pid}/ns/user")
            master = _hand_over_console(request, container, pid, message["console"])
            if "console" not in container.state and message["console"] >= 0:
                channel.send(step="taken")
            channel.close()
            if plan.sources:
                plan.sources.close()
            return master
        if message["step"] == "source":
            assert plan.sources
            plan.sources.answer(pid, message["position"])
            continue
        request.before_hooks(pid)
        state = hooks.state_of(container, "creating")
        undo.callback(hooks.run_all, plan.config, "poststop", state | {"status": "stopped"})
        # The specification once ran prestart hooks after `create`, and many still expect that.
        hooks.run(plan.config, "prestart", state | {"status": "created"})
        hooks.run(plan.config, "createRuntime", state)
        channel.send(step="go")
    raise _init_ended()


def _move_devices(linux: dict[str, Any], pid: int, undo: Undo) -> None:
    from woodfrog.runtime import net_devices

    moved = net_devices.Moved(pid)
    undo.callback(moved.undo)
    moved.move(net_devices.names(linux))


def _join_cgroups(request: Request, plan: init.Plan, pid: int) -> None:
    groups = plan.groups
    if "unit" in groups:
        from woodfrog.runtime.cgroups import systemd

        try:
            systemd.start(groups, pid, plan.config, request.warn)
        except WoodfrogError:
            if (found := states.start_time(pid)) and found[0] in "ZX":
                raise ProcessLookupError from None
            raise
    if groups["version"] == 2:
        from woodfrog.runtime.cgroups import delegation

        if (owner := delegation.owner(plan.config)) is not None:
            delegation.hand_over(groups["paths"][""], owner)
    cgroups.join(plan.unjoined, pid)


def _init_ended() -> WoodfrogError:
    return WoodfrogError(
        "the container's init ended before it was ready",
        hint="killed? a memory limit that is too small does that: the init needs about 12 MiB",
    )


def _mounts(pid: int) -> list[str]:
    """Return the lines of the container's mount table; a checkpoint looks for what has changed."""
    try:
        with open(f"/proc/{pid}/mountinfo", "rb", buffering=0) as file:
            return [os.fsdecode(line) for line in file.readall().splitlines()]
    except OSError:
        raise _init_ended() from None


def _hand_over_console(request: Request, container: Container, pid: int, number: int) -> int:
    if number < 0:
        return -1
    if not request.console_socket and not request.relay_console:
        # Nobody takes it yet: init keeps it, and `restore` may fetch it.
        container.state["console"] = number
        return -1
    master = delivery.fetch_descriptor(pid, number)
    if request.relay_console:
        adopt_terminal(master)
        return master
    try:
        delivery.send_console(request.console_socket, master)
    finally:
        os.close(master)
    return -1
