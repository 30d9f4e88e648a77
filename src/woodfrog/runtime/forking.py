"""The birth of a container's first process: into which namespaces, and what it is given."""

from __future__ import annotations

import os

from woodfrog.errors import SpecError
from woodfrog.kernel import namespaces as ns
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import pidfd_send_signal
from woodfrog.kernel.signals import signals
from woodfrog.runtime import cgroups, init, mount_sources, spec
from woodfrog.runtime import channel as channels
from woodfrog.runtime.cgroups.entering import doors_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from woodfrog.runtime.births import Midwife
    from woodfrog.runtime.cgroups.entering import Doors
    from woodfrog.runtime.state import Container, Lock
    from woodfrog.runtime.undo import Undo


def fork_init(
    plan: init.Plan, container: Container, lock: Lock, undo: Undo, midwife: Midwife | None = None
) -> tuple[int, channels.Channel]:
    """Fork the init into its pid namespace; only the child is there, we stay where we are.

    With a midwife it isn't ours, but born elsewhere.
    """
    wanted = spec.namespaces(plan.config)
    plan.start_fifo = container.path("exec.fifo")
    opened: list[int] = []
    try:
        for kind, path in wanted.items():
            if path:
                try:
                    plan.joined[kind] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise SpecError(
                        f"cannot open the {kind} namespace {path}: {error.strerror}"
                    ) from None
                opened.append(plan.joined[kind])
        if "user" in wanted:
            _choose_user_namespace(plan, container, opened)
        if plan.maps or mount_sources.maps_ids(plan.config):
            sources = mount_sources.Sources(plan.config, plan.bundle, plan.rootfs)
            plan.sources = mount_sources.Host(sources, in_user_namespace=plan.maps is not None)
            plan.kept.add(plan.sources.descriptor)
        ours, theirs = channels.pair()
        with doors_of(plan.groups) as doors:
            if midwife:
                pid, pidfd = midwife.fork(plan, theirs, doors)
                undo.callback(_end_elsewhere, pidfd, plan.groups)
                theirs.close()
            else:
                pid = _fork(plan, wanted.get("pid"), lock, ours, theirs, doors)
                undo.callback(_end, pid, plan.groups)
            plan.unjoined = doors.left
        return pid, ours
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _choose_user_namespace(plan: init.Plan, container: Container, opened: list[int]) -> None:
    """Open or make the user namespace; what its root needs of ours, it gets."""
    from woodfrog.runtime import id_maps, user_namespace

    joined = plan.joined.get("user", -1)
    plan.joined["user"], plan.maps = user_namespace.open_for(plan.config, joined)
    if joined < 0:
        opened.append(plan.joined["user"])
    os.chown(plan.start_fifo, *id_maps.root(plan.maps))


def _fork(
    plan: init.Plan,
    pid_namespace: str | None,
    lock: Lock,
    ours: channels.Channel,
    theirs: channels.Channel,
    doors: Doors,
) -> int:
    def run_inside() -> NoReturn:
        lock.close()
        ours.close()
        init.run(plan, theirs, doors.enter)

    joined = plan.joined.get("pid", -1)
    if not plan.maps:
        if (pid := fork_into_pid_namespace(pid_namespace, joined, doors.fork)) == 0:
            run_inside()
        theirs.close()
        return pid
    from woodfrog.runtime import user_namespace

    with user_namespace.Adopting():
        # A new pid namespace is to be the user namespace's: who enters that makes it.
        if (pid := fork_into_pid_namespace(pid_namespace or None, joined, doors.fork)) == 0:
            run_inside()
        theirs.close()
        return user_namespace.follow(pid, ours, plan.config)


def fork_into_pid_namespace(
    wanted: str | None, joined: int, fork: Callable[[], int] = os.fork
) -> int:
    """Fork with the child in a new pid namespace (""), a joined one, or ours (None).

    Where `fork` fails, os.fork() may not.
    """
    if wanted is None:
        try:
            return fork()
        except OSError:
            return os.fork()
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _choose_pid_namespace(wanted, joined)
        try:
            pid = fork()
        except OSError:
            # A pid namespace whose first process couldn't be born takes no other one.
            ns.setns(HERE, own, ns.CLONE_NEWPID)
            _choose_pid_namespace(wanted, joined)
            pid = os.fork()
        if pid:
            # Later children (hooks) are to be where we are.
            ns.setns(HERE, own, ns.CLONE_NEWPID)
        return pid
    finally:
        os.close(own)


def _choose_pid_namespace(wanted: str, joined: int) -> None:
    """Choose where children will be."""
    if wanted:
        ns.setns(HERE, joined, ns.CLONE_NEWPID)
    else:
        ns.unshare(HERE, ns.CLONE_NEWPID)


def _end_elsewhere(pidfd: int, groups: cgroups.Groups) -> None:
    import select

    try:
        pidfd_send_signal(HERE, pidfd, signals.SIGKILL)
    except ProcessLookupError:
        pass
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    waiting.poll()
    cgroups.kill(groups, signals.SIGKILL)


def _end(pid: int, groups: cgroups.Groups) -> None:
    os.kill(pid, signals.SIGKILL)
    os.waitpid(pid, 0)
    # Without a pid namespace of its own the end of the first process isn't that of all.
    cgroups.kill(groups, signals.SIGKILL)
