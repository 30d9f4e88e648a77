"""Which devices a container may use: v1 has files for it, v2 takes a small program."""

from __future__ import annotations

from woodfrog.errors import SpecError, WoodfrogError
from woodfrog.runtime import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from woodfrog.runtime.cgroups import Groups

    Key = tuple[str, int | None, int | None]  # type, major, minor; None is any

# What every container may use: making nodes, the default devices, pseudo-terminals.
_ALWAYS_ALLOWED: tuple[dict[str, Any], ...] = (
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "b", "access": "m"},
    *(
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, None))
    ),
)


class Rule:
    """One rule; of several that fit, the last decides."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.allow = bool(entry.get("allow"))
        self.type = entry.get("type") or "a"
        if self.type not in ("a", "b", "c"):
            raise SpecError(f"linux.resources.devices: invalid type {self.type!r}")
        self.major, self.minor = (
            None if entry.get(name) in (None, -1) else entry[name] for name in ("major", "minor")
        )
        access = entry.get("access") or "rwm"
        self.access = "".join(letter for letter in "rwm" if letter in access)

    @property
    def key(self) -> Key:
        """The devices that it is about."""
        return self.type, self.major, self.minor


def rules(entries: list[dict[str, Any]]) -> list[Rule]:
    """Return the rules that are asked for, and those that every container has."""
    return [Rule(entry) for entry in (*entries, *_ALWAYS_ALLOWED)]


def limit(groups: Groups, entries: list[dict[str, Any]]) -> None:
    """Let the container use only what the rules allow; what it may keep, it has all the time."""
    if groups["version"] == 2:
        _limit_v2(groups["paths"][""], rules(entries))
    elif directory := groups["paths"].get("devices"):
        set_v1(directory, allowance(rules(entries)))
    else:
        raise WoodfrogError(
            "cannot limit the devices: no devices cgroup is mounted",
            hint="mount it; without, a container could use every device of the host",
        )


class Allowance:
    """What rules come to: all is allowed or all is denied, but for exceptions."""

    def __init__(self, allow: bool) -> None:
        self.allow = allow
        self.exceptions: dict[Key, set[str]] = {}

    def add(self, rule: Rule) -> None:
        """Take in a rule that comes after those before."""
        if rule.type == "a":
            self.allow = rule.allow
            self.exceptions.clear()
        elif rule.allow == self.allow:
            if rule.key in self.exceptions:
                self.exceptions[rule.key] -= set(rule.access)
        else:
            self.exceptions.setdefault(rule.key, set()).update(rule.access)


def allowance(wanted: list[Rule]) -> Allowance:
    """Return what rules come to."""
    found = Allowance(allow=False)
    for rule in wanted:
        found.add(rule)
    return found


def set_v1(directory: str, target: Allowance) -> None:
    """Make a v1 group allow this; what it allowed before, too, it allows all the time."""
    current = current_v1(directory)
    if target.allow or current.allow:
        # A group that is allowed all doesn't show its exceptions: start over.
        _write(directory, target.allow, "a")
        current = Allowance(target.allow)
    for key, access in current.exceptions.items():
        if gone := access - target.exceptions.get(key, set()):
            _write(directory, target.allow, _line(key, gone))
    for key, access in target.exceptions.items():
        if new := access - current.exceptions.get(key, set()):
            _write(directory, not target.allow, _line(key, new))


def current_v1(directory: str) -> Allowance:
    """Return what a v1 group allows now."""
    found = Allowance(allow=False)
    for line in cgroups.read(directory, "devices.list").splitlines():
        kind, numbers, access = line.split()
        if kind == "a":
            return Allowance(allow=True)
        major, _, minor = numbers.partition(":")
        key = (kind, *(None if number == "*" else int(number) for number in (major, minor)))
        found.exceptions[key] = set(access)  # type: ignore[index]
    return found


def _line(key: Key, access: set[str]) -> str:
    kind, *numbers = key
    where = ":".join("*" if number is None else str(number) for number in numbers)
    return f"{kind} {where} {''.join(letter for letter in 'rwm' if letter in access)}"


def _write(directory: str, allow: bool, value: str) -> None:
    name = "devices.allow" if allow else "devices.deny"
    try:
        cgroups.write(directory, name, value)
    except OSError as error:
        raise WoodfrogError(
            f"cannot set {name} to {value}: {error.strerror}",
            hint="in a container? it can't give what it hasn't; start it with --privileged",
        ) from None


def _limit_v2(directory: str, wanted: list[Rule]) -> None:
    from woodfrog.kernel import device_filter
    from woodfrog.kernel.caller import HERE

    compiled = [
        (
            rule.allow,
            device_filter.TYPES.get(rule.type, 0),
            rule.major,
            rule.minor,
            sum(device_filter.ACCESS[letter] for letter in rule.access),
        )
        for rule in wanted
    ]
    try:
        device_filter.attach(HERE, directory, device_filter.program(compiled))
    except OSError as error:
        raise WoodfrogError(
            f"cannot limit the devices of {directory}: {error.strerror}",
            hint="in a container? start it with --privileged",
        ) from error
