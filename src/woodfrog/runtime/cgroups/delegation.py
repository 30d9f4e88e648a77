"""Who owns a container's v2 group: its own user, if it may make groups below."""

from __future__ import annotations

import os

from woodfrog.runtime import spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_DEFAULT = "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n"


def owner(config: dict[str, Any]) -> int | None:
    """Return the host's uid of the container's user, if its group is to be that user's.

    That is so if the container sees its group as a root of its own, and may write to it.
    """
    if spec.namespaces(config).get("cgroup") != "" or not _has_writable_mount(config):
        return None
    uid: int = (config["process"].get("user") or {}).get("uid") or 0
    if "user" not in spec.namespaces(config):
        return uid
    for mapping in (config.get("linux") or {}).get("uidMappings") or ():
        inside = uid - mapping["containerID"]
        if 0 <= inside < mapping["size"]:
            return int(mapping["hostID"] + inside)
    return None


def _has_writable_mount(config: dict[str, Any]) -> bool:
    return any(
        mount.get("type") == "cgroup"
        and os.path.normpath(mount["destination"]) == "/sys/fs/cgroup"
        and "ro" not in (mount.get("options") or ())
        for mount in config.get("mounts") or ()
    )


def hand_over(directory: str, uid: int) -> None:
    """Make a user the owner of the group, as far as the kernel says that this is safe."""
    try:
        with open("/sys/kernel/cgroup/delegate", encoding="ascii") as file:
            names = file.read()
    except FileNotFoundError:
        names = _DEFAULT
    os.chown(directory, uid, -1)
    for name in names.split():
        try:
            os.chown(f"{directory}/{name}", uid, -1)
        except FileNotFoundError:
            continue  # of a controller that this group hasn't
