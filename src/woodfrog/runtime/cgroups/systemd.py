"""Groups that systemd makes, as a unit of its own: asked for, changed and stopped by D-Bus."""

from __future__ import annotations

import os

from woodfrog.errors import WoodfrogError
from woodfrog.runtime import cgroups
from woodfrog.runtime.cgroups import devices, limits, limits_v2, places, unit_annotations, units
from woodfrog.runtime.cgroups.dbus import Connection, DBusError, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from woodfrog.runtime.cgroups import Groups
    from woodfrog.runtime.cgroups.limits import Resources, Warn
    from woodfrog.runtime.cgroups.units import Property

_SERVICE = "org.freedesktop.systemd1"
_MANAGER = (_SERVICE, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
_BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
_JOBS = "type='signal',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'"

_PRIVATE = "/run/systemd/private"  # systemd itself, without a bus; for root only
_PATIENCE = 30.0  # seconds


def plan(cgroups_path: str, id: str) -> Groups:
    """Return which groups a container gets, and what systemd calls them."""
    slice, unit = units.parse_path(cgroups_path, id)
    inside = f"{units.slice_path(slice)}/{unit}"
    tops = places.mounted(places.here())
    groups = places.at({name: top + inside for name, top in tops.items()})
    return groups | {"slice": slice, "unit": unit}


def start(groups: Groups, pid: int, config: dict[str, Any], warn: Warn) -> None:
    """Have systemd make the unit of the process, whose groups are there already, with limits."""
    resources = (config.get("linux") or {}).get("resources") or {}
    properties = [
        *units.of_unit(groups["slice"], groups["unit"], pid, groups["version"]),
        *units.of_resources(resources, groups["version"], warn),
        *units.of_start(resources),
        *unit_annotations.properties(config.get("annotations") or {}),
    ]
    with _connect() as systemd:
        try:
            _start_unit(systemd, groups["unit"], properties)
        except DBusError as error:
            if not error.name.endswith(".UnitExists"):
                raise
            # It failed once, perhaps, and is only remembered.
            _reset(systemd, groups["unit"])
            _start_unit(systemd, groups["unit"], properties)
    if groups["version"] == 2:
        cgroups.enable_controllers(groups["paths"][""])  # those that systemd doesn't know, too
    limits.apply(groups, _for_files(groups, resources), warn)


def _start_unit(systemd: Connection, unit: str, properties: list[Property]) -> None:
    try:
        (job,) = systemd.call(
            _MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "replace", properties, []
        )
    except DBusError as error:
        error.add_note(f"while systemd made the unit {unit}")
        raise
    result = _wait(systemd, job)
    if result != "done":
        _reset(systemd, unit)
        raise WoodfrogError(f"error creating systemd unit `{unit}`: got `{result}`")


def update(groups: Groups, resources: Resources, warn: Warn) -> None:
    """Set new limits, by systemd and by us."""
    if groups["version"] == 2:
        limits_v2.check_usage(groups["paths"][""], resources.get("memory") or {})
    properties = units.of_resources(resources, groups["version"], warn)
    if properties:
        with _connect() as systemd:
            if groups["version"] == 1 and "devices" in groups["paths"]:
                _set_in_v1(systemd, groups, properties)
            else:
                _set(systemd, groups, properties)
    limits.apply(groups, _for_files(groups, resources), warn)


def _set(systemd: Connection, groups: Groups, properties: list[Property]) -> None:
    systemd.call(_MANAGER, "SetUnitProperties", "sba(sv)", groups["unit"], True, properties)


def _set_in_v1(systemd: Connection, groups: Groups, properties: list[Property]) -> None:
    """Set properties, and the device rules again as they were.

    Whatever is set, systemd takes every device away for a moment, and then gives those that it
    knows of: the container isn't to see that, nor to lose what others have allowed.
    """
    directory = groups["paths"]["devices"]
    pause = not cgroups.is_frozen(groups)
    if pause:
        cgroups.freeze(groups, True)
    try:
        before = devices.current_v1(directory)
        _set(systemd, groups, properties)
        if not before.allow:
            devices.set_v1(directory, before)
    finally:
        if pause:
            cgroups.freeze(groups, False)


def _for_files(groups: Groups, resources: Resources) -> Resources:
    """Return what is to be written into files, so that they say what systemd says."""
    found = dict(resources)
    cpu = dict(resources.get("cpu") or {})
    if groups["version"] == 2 and cpu.get("idle") == 1:
        cpu.pop("shares", None)  # idleness rules out a weight
    if (cpu.get("quota") or 0) > 0:
        period = cpu.get("period") or limits_v2.DEFAULT_PERIOD
        cpu["quota"] = units.per_second(cpu["quota"], period) * period // units.SECOND
    unified = dict(resources.get("unified") or {})
    if unified.get("cpu.idle", "").strip() == "1":
        unified.pop("cpu.weight", None)
    return found | {"cpu": cpu, "unified": unified}


def stop(groups: Groups) -> None:
    """Have systemd forget the unit; one that is gone, or a systemd that is, is no trouble."""
    try:
        with _connect() as systemd:
            try:
                (job,) = systemd.call(_MANAGER, "StopUnit", "ss", groups["unit"], "replace")
                _wait(systemd, job)
            except DBusError:
                pass  # there is no such unit (any more): an empty scope goes by itself
            _reset(systemd, groups["unit"])
    except WoodfrogError:
        return


def _reset(systemd: Connection, unit: str) -> None:
    try:
        systemd.call(_MANAGER, "ResetFailedUnit", "s", unit)
    except DBusError:
        pass  # it hasn't failed


def _wait(systemd: Connection, job: str) -> str:
    """Wait until systemd has done a job; returns how it went."""

    def is_its_end(message: Message) -> bool:
        return message.member == "JobRemoved" and message.values[1] == job

    return str(systemd.wait(is_its_end).values[3])


class _connect:
    """Hold a connection to systemd: by the system bus, or else straight."""

    def __init__(self) -> None:
        self._connection: Connection

    def __enter__(self) -> Connection:
        address = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "")
        bus = address.partition("unix:path=")[2].partition(",")[0]
        tries = [(bus or "/run/dbus/system_bus_socket", True)]
        if not address:
            tries.append((_PRIVATE, False))
        reason: OSError | None = None
        for path, is_bus in tries:
            try:
                self._connection = Connection(path, _PATIENCE, is_bus=is_bus)
            except OSError as error:
                reason = error
                continue
            if is_bus:
                self._connection.call(_BUS, "AddMatch", "s", _JOBS)
            return self._connection
        raise WoodfrogError(
            "systemd not running on this host, cannot use systemd cgroups manager"
            f" ({tries[-1][0]}: {reason})",
            hint="leave --systemd-cgroup out; docker: native.cgroupdriver=cgroupfs",
        )

    def __exit__(self, kind: type[BaseException] | None, error: object, at: object) -> None:
        self._connection.__exit__()
        if kind is not None and issubclass(kind, OSError):
            raise WoodfrogError(f"systemd doesn't answer: {error}") from None
