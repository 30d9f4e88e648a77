"""linux.seccomp of the config, compiled into a filter."""

from __future__ import annotations

import errno

from woodfrog.errors import SpecError
from woodfrog.kernel import bpf
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.abi.x86_compat import i386, x32_own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_WHERE = "linux.seccomp"
_PERMISSIVE = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG")


def compile(seccomp: dict[str, Any], warn: Callable[[str], None]) -> tuple[bytes, int]:
    """Return (filter program, installation flags) of a seccomp object."""
    default = _action(seccomp.get("defaultAction"), seccomp.get("defaultErrnoRet"), _WHERE)
    rules: dict[str, list[bpf.Rule]] = {}
    for position, entry in enumerate(seccomp.get("syscalls") or ()):
        where = f"{_WHERE}.syscalls[{position}]"
        action = _action(entry.get("action"), entry.get("errnoRet"), where)
        if action == default:
            continue
        for conditions in _conditions(entry.get("args") or [], where):
            for name in entry.get("names") or ():
                rules.setdefault(name, []).append((conditions, action))
    for listed in rules.values():
        listed.sort(key=lambda rule: not rule[0])  # the unconditional last
    newest = None
    if seccomp.get("defaultAction") == "SCMP_ACT_ERRNO":
        # A C library that tries a newer call falls back on ENOSYS, but not on EPERM.
        newest = bpf.ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS
    tables = _tables(seccomp, rules)
    flags = 0
    for name in seccomp.get("flags") or ():
        if name not in bpf.FLAGS:
            raise SpecError(f"{_WHERE}.flags: {name} is not supported")
        # The only thread there is installs it: there is nobody to synchronise with.
        flags |= bpf.FLAGS[name] & ~bpf.FLAGS["SECCOMP_FILTER_FLAG_TSYNC"]
    try:
        return bpf.program(tables, default, newest), flags
    except ValueError as error:
        raise SpecError(f"{_WHERE}: {error}") from None


def _action(name: Any, value: int | None, where: str) -> int:
    if name not in bpf.ACTIONS:
        known = ", ".join(sorted(bpf.ACTIONS))
        raise SpecError(f"{where}: the action {name!r} is not one of {known}")
    number = bpf.ACTIONS[name]
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        number |= (errno.EPERM if value is None else value) & 0xFFFF
    return number


def _conditions(entries: list[dict[str, Any]], where: str) -> list[tuple[bpf.Condition, ...]]:
    """Return the alternatives: conditions on different arguments hold together, several on the
    same argument are each a rule of its own."""
    found: list[bpf.Condition] = []
    for entry in entries:
        index, operator = entry.get("index") or 0, entry.get("op")
        if operator not in bpf.OPERATORS or not 0 <= index <= 5:
            raise SpecError(f"{where}.args: {operator!r} on argument {index} is not possible")
        found.append((index, operator, entry.get("value") or 0, entry.get("valueTwo") or 0))
    if len({condition[0] for condition in found}) < len(found):
        return [(condition,) for condition in found]
    return [tuple(found)]


def _tables(
    seccomp: dict[str, Any], rules: dict[str, list[bpf.Rule]]
) -> dict[int, dict[int, list[bpf.Rule]]]:
    """Return the rules by number for each architecture; names that it hasn't are left out."""
    listed = set(seccomp.get("architectures") or ()) | {"SCMP_ARCH_X86_64"}
    native = {name.lower(): value for name, value in vars(SYS).items() if name.isupper()}
    calls = {native[name]: rule for name, rule in rules.items() if name in native}
    tables = {bpf.AUDIT_ARCH_X86_64: calls}
    if "SCMP_ARCH_X32" in listed:
        x32 = native | x32_own()
        calls |= {x32[name] | bpf.X32_BIT: rule for name, rule in rules.items() if name in x32}
    if "SCMP_ARCH_X86" in listed:
        old = i386()
        tables[bpf.AUDIT_ARCH_I386] = {
            old[name]: rule for name, rule in rules.items() if name in old
        }
    return tables
