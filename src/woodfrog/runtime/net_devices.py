"""linux.netDevices: network devices of the host's that the container takes over."""

from __future__ import annotations

import os

from woodfrog.errors import SpecError, WoodfrogError
from woodfrog.kernel.netlink import links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST_BYTES = 15  # IFNAMSIZ, without the NUL


def names(linux: dict[str, Any]) -> dict[str, str]:
    """Return the name inside of each device, or raise SpecError."""
    found = {
        name: (wish or {}).get("name") or name
        for name, wish in (linux.get("netDevices") or {}).items()
    }
    wanted = {one.get("type"): one.get("path") for one in linux.get("namespaces") or ()}
    if found and "network" not in wanted:
        raise SpecError(
            "linux.netDevices: unable to move network devices without a NET namespace",
            hint='add {"type": "network"} to linux.namespaces',
        )
    for name in (*found, *found.values()):
        if not 0 < len(name.encode()) <= _MOST_BYTES or name in (".", "..") or _is_odd(name):
            raise SpecError(f"linux.netDevices: {name!r} can't be the name of a network device")
    if len(set(found.values())) < len(found):
        raise SpecError("linux.netDevices: two devices would have the same name")
    return found


def _is_odd(name: str) -> bool:
    return any(letter in "/:%" or letter.isspace() for letter in name)


class Moved:
    """Devices in a container's network namespace, which stays there for as long as we hold it."""

    def __init__(self, init: int) -> None:
        self._ours = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._theirs = os.open(f"/proc/{init}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._moved: dict[str, str] = {}

    def move(self, devices: dict[str, str]) -> None:
        """Move devices into the container."""
        for name, inside in devices.items():
            _move(name, self._ours, self._theirs, inside)
            self._moved[name] = inside

    def undo(self) -> None:
        """Give them back to the host: with the namespace the kernel would end some of them."""
        for name, inside in self._moved.items():
            _move(inside, self._theirs, self._ours, name)
        self._moved.clear()


def _move(name: str, source: int, target: int, new_name: str) -> None:
    try:
        links.move(name, source, target, new_name)
    except OSError as error:
        raise WoodfrogError(f"linux.netDevices: {(error.strerror or '').lower()}") from None
