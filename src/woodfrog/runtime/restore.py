"""What the runtime does around the engine's restore: a container to restore into, and after."""

from __future__ import annotations

import os

from woodfrog.errors import ImageError, StateError, UnsupportedResource
from woodfrog.kernel import capability
from woodfrog.kernel.procfs.mountinfo import read_mounts
from woodfrog.runtime import (
    create,
    delivery,
    filling,
    given_network,
    lifecycle,
    process,
    run,
    spec,
    spec_differences,
    tracking,
)
from woodfrog.runtime import state as states
from woodfrog.runtime.create import Created, Request
from woodfrog.runtime.state import Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Any

    from woodfrog.engine.connections import Silence
    from woodfrog.engine.restore import Bounds
    from woodfrog.engine.template import Template
    from woodfrog.resources.container import ContainerRecord
    from woodfrog.runtime.announcing import Announcement
    from woodfrog.runtime.births import Midwife
    from woodfrog.runtime.cuda import Toggle


class Options:
    """What the user may choose."""

    clock = "container"
    cpu_check = "strict"
    file_validation = "build-id"
    tcp_established = False
    tcp_close = False
    tcp_listen_only = False
    spec_validation: str | None = None
    gpus: Toggle | None = None
    announcement: Announcement | None = None
    parents: Sequence[str] = ()  # directories of images that the image may build on
    direct = False  # the image is read past the page cache
    track_changes = False  # it is noted what is written to
    background = False  # most of the memory comes when the container runs
    template: Template | None = None  # which has the image's memory, and which we are a fork of
    midwife: Midwife | None = None  # makes forks of it for us
    run: Callable[[list[str]], int]  # runs command lines, for a keeper
    complain: Callable[[str], None]  # writes to the log when the command has ended
    silence: Silence | None = None  # of connections, since before there was a network


def restore(
    into: Container | Request,
    directory: str,
    options: Options,
    *,
    warn: Callable[[str], None],
    tell: Callable[[str], None],
    console_socket: str,
    pid_file: str,
    work_path: str,
    detach: bool,
    keep: bool,
    subreaper: bool,
) -> int:
    """Thaw the image in `directory` into a container that waits, or that is created now.

    Attached, the result is the container's exit status.
    """
    is_child = isinstance(into, Request)
    debug = into.debug if isinstance(into, Request) else None
    if isinstance(into, Request):
        into.to_be_restored = True
        into.meanwhile = _load_engine
        if options.tcp_established and "network" in spec.new_namespaces(into.config):
            into.before_hooks = lambda pid: _begin_silence(options, pid, directory)
        into.midwife = options.midwife
        if options.template:
            into.stand_by = options.template.stand_by
        into.relay_console = not into.console_socket and not detach
        created = create.create(into)
    else:
        with into.lock():
            into.reload()
            into.require("restore")
        config = lifecycle.config_of(into)
        created = Created(into, config, _take_console(into, console_socket, detach))
    try:
        with created.container.lock():
            _restore(created, directory, options, work_path, warn, debug)
        if options.announcement:
            with _EndedByFailure():
                options.announcement.tell(created.container, "restore")
        if pid_file:
            delivery.write_pid_file(pid_file, created.container.pid)
    except BaseException as error:
        # A container that somebody created stays created, unless the engine had begun to turn it
        # into something else; one that we created for this goes.
        if is_child or getattr(error, "touched", False) or not created.container.is_alive():
            run.end(created, warn)
        raise
    if detach:
        return 0
    return run.stay(created, warn, tell, keep=keep, subreaper=subreaper, is_child=is_child)


def _load_engine() -> None:
    """Import the engine, which takes as long as init does."""
    from woodfrog.engine import restore as _  # noqa: F401


def _begin_silence(options: Options, pid: int, directory: str) -> None:
    """Have nobody answer for connections that aren't there yet, once hooks set up the network.

    That is, in a new network namespace.
    """
    from woodfrog.engine import restore as engine

    options.silence = engine.silence_for(pid, directory, options.parents)


def _take_console(container: Container, console_socket: str, detach: bool) -> int:
    """Fetch the terminal's master that the waiting init holds; returns it if we relay it."""
    number = container.state.get("console", -1)
    if number < 0:
        return -1
    master = delivery.fetch_descriptor(container.pid, number)
    if console_socket:
        try:
            delivery.send_console(console_socket, master)
        finally:
            os.close(master)
        return -1
    if detach:
        os.close(master)
        raise StateError(
            f"container {container.id} has a terminal, and a detached restore nobody to hold it",
            hint="give --console-socket, or stay attached",
        )
    return master


def _restore(
    created: Created,
    directory: str,
    options: Options,
    work_path: str,
    warn: Callable[[str], None],
    debug: Callable[[str], None] | None,
) -> None:
    from woodfrog.engine import restore as engine

    container = created.container
    container.reload()
    container.require("restore")

    suspended: list[int] = []

    def accept(image: ContainerRecord) -> None:
        if image.cuda and not options.gpus:
            raise UnsupportedResource(
                f"process {image.cuda[0]} of the image needs its GPU state put back",
                hint="--cuda-checkpoint-path names NVIDIA's program that does that",
            )
        suspended.extend(image.cuda)
        spec_differences.judge(image.config, created.config, options.spec_validation, warn)

    given_network.note(container, created.config)
    noting = tracking.Noting(container, options.run, is_wanted=options.track_changes)
    try:
        wishes = engine.Wishes(
            bounds=bounds(
                created, engine.Bounds, options, shows_cgroups=_shows_cgroups(created.container)
            ),
            clock=options.clock,
            cpu_check=options.cpu_check,
            file_validation=options.file_validation,
            accept=accept,
            silence=options.silence,
            teller=filling.Teller(container, options.complain) if options.background else None,
            parents=options.parents,
            direct=options.direct,
            tracker=noting if options.track_changes else None,
            template=options.template,
        )
        with noting:
            statistics = engine.restore(container.pid, directory, wishes)
    except Exception as error:
        if failure := filling.failure(container):
            raise ImageError(failure) from error  # of which the engine has seen only the end
        raise
    if debug:
        debug(f"engine: restored in {statistics['restore_us']} us")
    _note(container, directory)
    if options.gpus and suspended:
        from woodfrog.runtime.waiting import host_pid

        with _EndedByFailure():
            options.gpus.toggle([host_pid(container, pid) for pid in suspended])
    _warn_of_losses(statistics, warn)
    if work_path:
        from woodfrog.runtime import criu_files

        log = criu_files.log_name("restore.log", container.state["annotations"])
        criu_files.after_restore(work_path, log, statistics, warn)
    lifecycle.after_start(container, created.config)


def _note(container: Container, directory: str) -> None:
    """Note in the container's state that it runs, and of what image it was made."""
    os.unlink(container.path("exec.fifo"))
    container.state.pop("console", None)
    container.state["restoredFrom"] = {
        "image": os.path.join(os.path.abspath(directory), "checkpoint.img"),
        "time": states.now(),
    }
    container.save()


def _warn_of_losses(statistics: dict[str, object], warn: Callable[[str], None]) -> None:
    losses = statistics.get("losses")
    for loss in losses if isinstance(losses, (list, tuple)) else ():
        warn(f"lost at the checkpoint: {loss}")
    missing = statistics.get("missing")
    for lack in missing if isinstance(missing, (list, tuple)) else ():
        warn(lack)


class _EndedByFailure:
    """Have the container ended, which the engine has let go already, if something fails here."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if error is not None:
            error.touched = True  # type: ignore[attr-defined]


def _profile(config: dict[str, Any]) -> bytes | None:
    wanted = (config.get("linux") or {}).get("seccomp")
    if not wanted:
        return None
    from woodfrog.runtime import seccomp

    profile = seccomp.compile(wanted)
    if profile and profile.listener_path:
        raise UnsupportedResource(
            "the new container's seccomp profile asks a listener (SCMP_ACT_NOTIFY), which a restore"
            " doesn't do",
            hint="restore with a profile without it",
        )
    return profile.filter if profile else None


def bounds(
    created: Created, kind: type[Bounds], options: Options, *, shows_cgroups: bool
) -> Bounds:
    """Return what the container's own config allows; nothing restored is wider.

    `shows_cgroups` tells that programs in it may write to cgroups, whatever the config says.
    """
    config = created.config
    wanted = config["process"]
    masks, _ = process.capability_masks(wanted)
    return kind(
        tcp_established=options.tcp_established,
        tcp_close=options.tcp_close,
        tcp_listen_only=options.tcp_listen_only,
        bounding=masks["bounding"] & (1 << len(capability.NAMES)) - 1,
        no_new_privs=bool(wanted.get("noNewPrivileges")),
        seccomp=_profile(config),
        rlimits=process.rlimits(wanted),
        oom_score_adj=wanted.get("oomScoreAdj"),
        spec_hostname=config.get("hostname") or "",
        terminal=bool(wanted.get("terminal")),
        cgroups=created.container.state["cgroup"]["paths"],
        may_make_cgroups=spec.may_make_cgroups(config) or shows_cgroups,
        tmpfs=spec.tmpfs_destinations(config),
        new_namespaces=spec.new_namespaces(config),
    )


def _shows_cgroups(container: Container) -> bool:
    """Tell whether programs in a new container may write to cgroups: podman binds the host's."""
    init = container.pid
    for mount in read_mounts(init):
        if mount.type in ("cgroup", "cgroup2"):
            seen = f"/proc/{init}/root{os.fsdecode(mount.point)}"
            # What is mounted over it counts, as read-only paths of the config are.
            if not os.statvfs(seen).f_flag & os.ST_RDONLY:
                return True
    return False
