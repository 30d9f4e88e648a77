"""The container's user namespace: which one, and what must be done before and after entering it."""

from __future__ import annotations

import os
import stat

from woodfrog.errors import SpecError, WoodfrogError, while_
from woodfrog.kernel import namespaces as ns
from woodfrog.kernel import user_namespace as kernel
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_DUMPABLE,
    is_subreaper,
    prctl,
)
from woodfrog.kernel.procfs.id_maps import IdMap, IdMaps
from woodfrog.kernel.signals import signals
from woodfrog.runtime import clocks, id_maps
from woodfrog.runtime import process as processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from woodfrog.runtime.channel import Channel


def open_for(config: dict[str, Any], joined: int) -> tuple[int, IdMaps]:
    """Return (descriptor, maps) of the namespace that the config asks for; `joined` if by path."""
    given = id_maps.of_config(config["linux"], "linux")
    if joined >= 0:
        maps = maps_of(joined)
        if given and given != maps:
            raise SpecError(
                "linux: user namespaces enabled, but both namespace path and non-matching mapping"
                " specified",
                hint="leave uidMappings and gidMappings out: the namespace has its own",
            )
        id_maps.root(maps)  # raises if there is none
        return joined, maps
    if given is None:
        raise SpecError(
            "linux: user namespaces enabled, but no namespace path to join nor mappings to apply"
            " specified",
            hint="add linux.uidMappings and linux.gidMappings",
        )
    id_maps.root(given)
    return make(given), given


def make(maps: IdMaps) -> int:
    """Return a descriptor of a new user namespace with these maps."""
    try:
        return kernel.make(maps.users.text, maps.groups.text)
    except OSError as error:
        raise WoodfrogError(
            f"cannot make a user namespace: {(error.strerror or '').lower()}",
            hint="do its id mappings overlap? is user.max_user_namespaces (sysctl) large enough?",
        ) from None


def maps_of(namespace: int) -> IdMaps:
    """Return the maps of the user namespace that a descriptor names."""
    try:
        users, groups = kernel.read_maps(namespace)
    except OSError as error:
        raise WoodfrogError(
            f"cannot join the user namespace: {(error.strerror or '').lower()}"
        ) from None
    return IdMaps(IdMap.of_text(users), IdMap.of_text(groups))


def load_rest() -> None:
    """Load what is otherwise loaded late, while our own files are there to be loaded."""
    from woodfrog.kernel.procfs import mountinfo  # noqa: F401
    from woodfrog.runtime import clocks, copy_up, labels, scheduling  # noqa: F401
    from woodfrog.runtime.cgroups import mounting  # noqa: F401


def leave_host(process: dict[str, Any], maps: IdMaps) -> None:
    """Do what only the host's root can, for a process that is about to enter the namespace."""
    # Our own files may be out of the reach of the container's ids.
    load_rest()
    processes.check_rights(process)
    processes.raise_hard_limits(process)
    user = _user_outside(process.get("user") or {}, maps)
    for descriptor in (0, 1, 2):
        try:
            kind = os.fstat(descriptor).st_mode
            # A pipe may be opened again by its name in /proc; files and terminals are the host's.
            if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
                os.fchown(descriptor, user, -1)
        except OSError:
            continue


def _user_outside(wanted: dict[str, Any], maps: IdMaps) -> int:
    """Return who the process's user is outside, if all its ids are mapped."""
    uid = wanted.get("uid") or 0
    user = maps.users.outside(uid)
    if user is None:
        raise SpecError(f"process.user: cannot set uid to unmapped user in user namespace: {uid}")
    for gid in (wanted.get("gid") or 0, *(wanted.get("additionalGids") or ())):
        if maps.groups.outside(gid) is None:
            raise SpecError(
                f"process.user: cannot set gid to unmapped group in user namespace: {gid}"
            )
    return user


def enter(namespace: int) -> None:
    """Enter a user namespace as its root."""
    with while_("entering the user namespace"):
        ns.setns(HERE, namespace, ns.CLONE_NEWUSER)
        become_root()


def become_root() -> None:
    """Be the root of the user namespace that we have entered."""
    kernel.become_root()
    # A change of ids has reset it.
    prctl(HERE, PR_SET_DUMPABLE, 0)


def go_on_as_child(channel: Channel) -> None:
    """Go on in a child, which is the first in its pid namespace; the outside half is told."""
    pid = os.fork()
    if pid:
        channel.send(step="forked", pid=pid)
        os._exit(0)
    if channel.receive() is None:  # else our first request could come before that message
        os._exit(1)


class Adopting:
    """Be the one, within a `with` block, that our descendants' orphans are handed to."""

    def __enter__(self) -> None:
        self._was = is_subreaper(HERE)
        prctl(HERE, PR_SET_CHILD_SUBREAPER, 1)

    def __exit__(self, *_: object) -> None:
        prctl(HERE, PR_SET_CHILD_SUBREAPER, self._was)


def follow(first: int, channel: Channel, config: dict[str, Any]) -> int:
    """Lead the process that enters the namespace; returns the pid of the one that is init."""
    try:
        while message := channel.receive():
            if message["step"] == "forked":
                os.waitpid(first, 0)
                channel.send(step="go")
                pid: int = message["pid"]
                return pid
            if message["step"] == "entered":
                return first
            clocks.write(first, config)
            channel.send(step="go")
        raise WoodfrogError("the container's init ended on its way into the user namespace")
    except BaseException:
        os.kill(first, signals.SIGKILL)
        os.waitpid(first, 0)
        raise
