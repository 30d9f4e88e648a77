"""linux.seccomp of the config, compiled into a filter."""

from __future__ import annotations

import errno

from woodfrog.errors import SpecError
from woodfrog.kernel import bpf
from woodfrog.kernel.abi.x86_64 import SYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_WHERE = "linux.seccomp"
# With these as default action a call that nobody knows yet is made, not refused.
_PERMISSIVE = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
_NOTIFY = bpf.ACTIONS["SCMP_ACT_NOTIFY"]

# Profiles are written for many processors; programs of these can't run here.
_FOREIGN = {
    f"SCMP_ARCH_{name}"
    for name in (
        *("ARM", "AARCH64", "LOONGARCH64", "M68K", "PARISC", "PARISC64", "PPC", "PPC64", "PPC64LE"),
        *("MIPS", "MIPS64", "MIPS64N32", "MIPSEL", "MIPSEL64", "MIPSEL64N32"),
        *("RISCV64", "S390", "S390X", "SH", "SHEB"),
    )
}


class Profile:
    """A compiled profile, and who is told of the calls that it doesn't decide itself."""

    def __init__(self, filter: bytes, flags: int) -> None:
        self.filter = filter
        self.flags = flags
        self.listener_path = ""
        self.metadata = ""


def compile(seccomp: dict[str, Any]) -> Profile | None:
    """Return what a seccomp object comes to; one that says nothing is none."""
    if not seccomp.get("defaultAction") and not seccomp.get("syscalls"):
        return None
    default = _action(seccomp.get("defaultAction"), seccomp.get("defaultErrnoRet"), _WHERE)
    if default == _NOTIFY:
        raise SpecError(f"{_WHERE}: SCMP_ACT_NOTIFY cannot be used as default action")
    rules: dict[str, list[bpf.Rule]] = {}
    notifies = False
    for name, conditions, action in _rules(seccomp):
        if action == _NOTIFY:
            notifies = True
            if name == "write":
                raise SpecError(
                    f"{_WHERE}: SCMP_ACT_NOTIFY cannot be used for the write syscall",
                    hint="by it the container tells the descriptor that the listener needs",
                )
        known = rules.setdefault(name, [])
        if action != default:
            known.append((conditions, action))
    for listed in rules.values():
        listed.sort(key=lambda rule: not rule[0])  # the unconditional last
    # A C library that tries a newer call falls back on ENOSYS, but not on EPERM.
    unknown = bpf.ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS
    newest = default if seccomp.get("defaultAction") in _PERMISSIVE else unknown
    try:
        filter = bpf.program(_tables(seccomp, rules), default, newest)
    except ValueError as error:
        raise SpecError(f"{_WHERE}: {error}") from None
    profile = Profile(filter, _flags(seccomp, notifies))
    if notifies:
        profile.listener_path = seccomp.get("listenerPath") or ""
        profile.metadata = seccomp.get("listenerMetadata") or ""
        if not profile.listener_path:
            raise SpecError(f"{_WHERE}.listenerPath is not set, but SCMP_ACT_NOTIFY is used")
    return profile


def _rules(seccomp: dict[str, Any]) -> Iterator[tuple[str, tuple[bpf.Condition, ...], int]]:
    for position, entry in enumerate(seccomp.get("syscalls") or ()):
        where = f"{_WHERE}.syscalls[{position}]"
        action = _action(entry.get("action"), entry.get("errnoRet"), where)
        for conditions in _conditions(entry.get("args") or [], where):
            for name in entry.get("names") or ():
                yield name, conditions, action


def _flags(seccomp: dict[str, Any], notifies: bool) -> int:
    given = seccomp.get("flags")
    flags = bpf.NEW_LISTENER if notifies else 0
    for name in ("SECCOMP_FILTER_FLAG_SPEC_ALLOW",) if given is None else given:
        if name not in bpf.FLAGS:
            raise SpecError(f"{_WHERE}.flags: seccomp flag {name} is not known")
        flags |= bpf.FLAGS[name]
    # The only thread there is installs it: there is nobody to synchronise with.
    flags &= ~bpf.FLAGS["SECCOMP_FILTER_FLAG_TSYNC"]
    if not notifies:  # then nobody ever waits for a listener's answer
        flags &= ~bpf.FLAGS["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]
    return flags


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


def _tables(seccomp: dict[str, Any], rules: dict[str, list[bpf.Rule]]) -> dict[int, bpf.Calls]:
    """Return the rules by number for each architecture; names that it hasn't are left out."""
    listed = set(seccomp.get("architectures") or ()) | {"SCMP_ARCH_X86_64"}
    if wrong := listed - set(bpf.ARCHITECTURES) - _FOREIGN:
        raise SpecError(f"{_WHERE}.architectures: {sorted(wrong)[0]!r} is no architecture")
    native = {name.lower(): value for name, value in vars(SYS).items() if name.isupper()}
    calls = {native[name]: rule for name, rule in rules.items() if name in native}
    tables = {bpf.AUDIT_ARCH_X86_64: calls}
    if "SCMP_ARCH_X32" in listed:
        from woodfrog.kernel.abi.x86_compat import x32_own

        x32 = native | x32_own()
        calls |= {x32[name] | bpf.X32_BIT: rule for name, rule in rules.items() if name in x32}
    if "SCMP_ARCH_X86" in listed:
        tables[bpf.AUDIT_ARCH_I386] = _of_32_bits(rules)
    return tables


def _of_32_bits(rules: dict[str, list[bpf.Rule]]) -> bpf.Calls:
    """Return the rules for 32-bit programs, which have narrower arguments and older ways."""
    from woodfrog.kernel.abi.x86_compat import i386, multiplexed

    through = multiplexed()
    narrow: dict[str, list[bpf.Rule]] = {}
    for name, listed in rules.items():
        narrow.setdefault(name, []).extend(
            (tuple((i, op, a & 0xFFFFFFFF, b & 0xFFFFFFFF) for i, op, a, b in conditions), action)
            for conditions, action in listed
        )
        if name in through and name != through[name][0]:
            call, number = through[name]
            # Its arguments are behind a pointer, where a filter can't look.
            only: tuple[bpf.Condition, ...] = ((0, "SCMP_CMP_MASKED_EQ", 0xFFFF, number),)
            narrow.setdefault(call, [])[:0] = [
                (only, action) for conditions, action in listed if not conditions
            ]
    numbers = i386()
    return {numbers[name]: rule for name, rule in narrow.items() if name in numbers}
