"""What a process object says of processors, disks and memory nodes: checked, and set."""

from __future__ import annotations

import errno

from woodfrog.errors import SpecError, WoodfrogError
from woodfrog.kernel import scheduling as kernel
from woodfrog.kernel.caller import HERE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PERSONALITIES = {"LINUX": 0, "LINUX32": 8}


def check(process: dict[str, Any], linux: dict[str, Any]) -> None:
    """Raise SpecError if one of these settings makes no sense."""
    if scheduler := process.get("scheduler"):
        where = "process.scheduler"
        _pick(kernel.SCHED_POLICIES, scheduler.get("policy"), f"{where}.policy")
        _flags(kernel.SCHED_FLAGS, scheduler, where)
    if io_priority := process.get("ioPriority"):
        _pick(kernel.IOPRIO_CLASSES, io_priority.get("class"), "process.ioPriority.class")
        priority = io_priority.get("priority") or 0
        if not 0 <= priority <= 7:
            raise SpecError(f"process.ioPriority.priority must be 0 to 7, and is {priority}")
    affinity = process.get("execCPUAffinity") or {}
    for name in ("initial", "final"):
        if affinity.get(name):
            processors(affinity[name], f"process.execCPUAffinity.{name}")
    if personality := linux.get("personality"):
        _pick(_PERSONALITIES, personality.get("domain"), "linux.personality.domain")
        if personality.get("flags"):
            raise SpecError("linux.personality.flags: none is known")
    if policy := linux.get("memoryPolicy"):
        _pick(kernel.MEMORY_POLICIES, policy.get("mode"), "linux.memoryPolicy.mode")
        processors(policy.get("nodes") or "", "linux.memoryPolicy.nodes")
        _flags(kernel.MEMORY_FLAGS, policy, "linux.memoryPolicy")


def apply(process: dict[str, Any], config: dict[str, Any]) -> None:
    """Set what a process object and the container's config say, for the calling thread."""
    linux = config.get("linux") or {}
    if personality := linux.get("personality"):
        kernel.set_personality(HERE, _PERSONALITIES[personality["domain"]])
    if policy := linux.get("memoryPolicy"):
        mode = kernel.MEMORY_POLICIES[policy["mode"]]
        mode |= _flags(kernel.MEMORY_FLAGS, policy, "linux.memoryPolicy")
        nodes = processors(policy.get("nodes") or "", "linux.memoryPolicy.nodes")
        _set("linux.memoryPolicy", kernel.set_memory_policy, mode, nodes)
    if io_priority := process.get("ioPriority"):
        io_class = kernel.IOPRIO_CLASSES[io_priority["class"]]
        priority = io_priority.get("priority") or 0
        _set("process.ioPriority", kernel.set_io_priority, io_class, priority)
    if scheduler := process.get("scheduler"):
        _set_scheduler(scheduler, config)


def _set_scheduler(scheduler: dict[str, Any], config: dict[str, Any]) -> None:
    times = tuple(scheduler.get(name) or 0 for name in ("runtime", "deadline", "period"))
    try:
        kernel.set_scheduler(
            HERE,
            kernel.SCHED_POLICIES[scheduler["policy"]],
            _flags(kernel.SCHED_FLAGS, scheduler, "process.scheduler"),
            scheduler.get("nice") or 0,
            scheduler.get("priority") or 0,
            (times[0], times[1], times[2]),
        )
    except OSError as error:
        resources = (config.get("linux") or {}).get("resources") or {}
        if error.errno == errno.EPERM and (resources.get("cpu") or {}).get("cpus"):
            raise WoodfrogError(
                "process scheduler can't be used together with AllowedCPUs"
                " (linux.resources.cpu.cpus): the kernel wants a deadline to be free of cpusets"
            ) from None
        raise WoodfrogError(f"cannot set process.scheduler: {error.strerror}") from None


def _set(what: str, call: Any, *arguments: int) -> None:
    try:
        call(HERE, *arguments)
    except OSError as error:
        raise WoodfrogError(f"cannot set {what}: {error.strerror}") from None


def processors(text: str, where: str) -> int:
    """Return the mask of a list like 0-3,7."""
    mask = 0
    for part in text.split(",") if text else ():
        first, dash, last = part.strip().partition("-")
        numbers = (first, last if dash else first)
        if not all(number.isdigit() and len(number) < 5 for number in numbers):
            raise SpecError(f"{where}: {text!r} is no list of numbers like 0-3,7")
        low, high = int(numbers[0]), int(numbers[1])
        if low > high:
            raise SpecError(f"{where}: {part!r} ends before it begins")
        mask |= (1 << high + 1) - (1 << low)
    return mask


def _flags(known: dict[str, int], given: dict[str, Any], where: str) -> int:
    flags = 0
    for name in given.get("flags") or ():
        flags |= _pick(known, name, f"{where}.flags")
    return flags


def _pick(known: dict[str, int], name: Any, where: str) -> int:
    if name not in known:
        raise SpecError(f"{where} is {name!r}, and must be one of {', '.join(known)}")
    return known[name]
