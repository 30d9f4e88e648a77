"""What must not differ between the config of a checkpointed container and that of the new one.

Its sources of mounts, names, environment, annotations, limits and resources may: a new container
has its own. What processes can see and have relied on may not.
"""

from __future__ import annotations

from functools import lru_cache

from woodfrog.errors import ImageError, SpecError
from woodfrog.runtime import spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Processes have ids, memory, files and addresses in these; the others only show names.
_HELD_IN = ("pid", "mount", "ipc", "network", "user")

# What engines put into a container as they see fit, and programs can do without.
_ENGINES_OWN = (
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/run/.containerenv",
    "/run/secrets",
    "/sys/fs/cgroup",
)


class Differences:
    """What differs: what would surely break, and what may go well."""

    def __init__(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        self.breaking: list[str] = []
        self.other: list[str] = []
        self._compare_namespaces(spec.namespaces(old), spec.namespaces(new))
        for name in ("uidMappings", "gidMappings"):
            lost = _lost_id(_ids(old, name), _ids(new, name))
            if lost is not None:
                self.breaking.append(f"linux.{name}: id {lost} was mapped, and is not")
        self._compare_mounts(_mounts(old), _mounts(new))
        self._compare_processes(old.get("process") or {}, new.get("process") or {})
        if _readonly(new) and not _readonly(old):
            self.other.append("root.readonly: the root can't be written to any more")
        old_devices, new_devices = _devices(old), _devices(new)
        for path in sorted(old_devices - new_devices):
            self.other.append(f"linux.devices: {path} is missing")

    def __str__(self) -> str:
        """Return everything in one line, the worst first."""
        return "; ".join(self.breaking + self.other)

    def _compare_namespaces(self, old: dict[str, str], new: dict[str, str]) -> None:
        for kind in sorted(old.keys() ^ new.keys()):
            how = "the container had one of its own, the new one has not"
            if kind in new:
                how = "the container had none of its own, the new one has"
            found = self.breaking if kind in _HELD_IN else self.other
            found.append(f"linux.namespaces: {kind}: {how}")

    def _compare_mounts(self, old: dict[str, str], new: dict[str, str]) -> None:
        for destination, kind in old.items():
            if destination not in new:
                found = self.other if destination in _ENGINES_OWN else self.breaking
                found.append(f"mounts: {destination} is missing")
            elif new[destination] != kind:
                self.other.append(f"mounts: {destination} was {kind}, and is {new[destination]}")
        for destination in new:
            if destination not in old and destination not in _ENGINES_OWN:
                self.other.append(f"mounts: {destination} is new")

    def _compare_processes(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        had, has = bool(old.get("terminal")), bool(new.get("terminal"))
        if had and not has:
            self.breaking.append("process.terminal: the container had one, the new one has not")
        elif has and not had:
            self.other.append("process.terminal: the container had none, the new one has")
        if (old.get("args") or []) != (new.get("args") or []):
            self.other.append(f"process.args: {_words(old)} was started, not {_words(new)}")
        for name in ("uid", "gid"):
            was, now = ((one.get("user") or {}).get(name) or 0 for one in (old, new))
            if was != now:
                self.other.append(f"process.user.{name}: was {was}, and is {now}")


def _mounts(config: dict[str, Any]) -> dict[str, str]:
    """Return what is mounted: destination to kind. All bind mounts are of one kind."""
    found = {}
    for mount in config.get("mounts") or ():
        options = mount.get("options") or ()
        bind = "bind" in options or "rbind" in options
        destination = "/" + (mount.get("destination") or "").strip("/")
        found[destination] = "bind" if bind else mount.get("type") or "bind"
    return found


def _ids(config: dict[str, Any], name: str) -> list[tuple[int, int]]:
    """Return the ranges of ids that a container has, from the first to behind the last."""
    mappings = (config.get("linux") or {}).get(name) or ()
    return [
        (one.get("containerID") or 0, (one.get("containerID") or 0) + (one.get("size") or 0))
        for one in mappings
    ]


def _lost_id(old: list[tuple[int, int]], new: list[tuple[int, int]]) -> int | None:
    """Return the first id that is in the old ranges and not in the new ones."""
    for first, end in sorted(old):
        at = first
        for start, stop in sorted(new):
            if start <= at < stop:
                at = stop
        if at < end:
            return at
    return None


def _readonly(config: dict[str, Any]) -> bool:
    return bool((config.get("root") or {}).get("readonly"))


def _devices(config: dict[str, Any]) -> set[str]:
    devices = (config.get("linux") or {}).get("devices") or ()
    return {device.get("path") or "" for device in devices}


def _words(process: dict[str, Any]) -> str:
    text = " ".join(process.get("args") or ())
    return repr(text if len(text) <= 60 else text[:59] + "…")


def judge(
    image: bytes, new: dict[str, Any], policy: str | None, warn: Callable[[str], None]
) -> None:
    """Compare the config in an image with the new container's; refuse or warn by the policy.

    Unless told otherwise, refuse what would break, and warn of the rest.
    """
    if policy == "ignore":
        return
    found = Differences(_of_image(image), new)
    if policy != "warning" and (found.breaking or (policy == "enforce" and found.other)):
        raise SpecError(
            f"the new container's config doesn't fit the image: {found}",
            hint="change config.json, or try all the same: --restore-spec-validation=warning",
        )
    if found.breaking or found.other:
        warn(f"the new container's config differs from the image's: {found}")


@lru_cache(maxsize=1)  # who makes clones asks for each
def _of_image(text: bytes) -> Any:
    try:
        config = spec.parse(text, "the config in the image")
        spec.check_shape(config)
    except SpecError as error:
        raise ImageError(f"the image is damaged: {error}") from None
    return config
