"""woodfrog update"""

from __future__ import annotations

from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.loading import held
from woodfrog.cli.report import warner
from woodfrog.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Each flag, and where in linux.resources its value goes.
_PLACES = {
    "blkio-weight": ("blockIO", "weight"),
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-burst": ("cpu", "burst"),
    "cpu-share": ("cpu", "shares"),
    "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"),
    "cpu-idle": ("cpu", "idle"),
    "cpuset-cpus": ("cpu", "cpus"),
    "cpuset-mems": ("cpu", "mems"),
    "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"),
    "kernel-memory": ("memory", "kernel"),
    "kernel-memory-tcp": ("memory", "kernelTCP"),
    "pids-limit": ("pids", "limit"),
}
_UNITS = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}


def run(arguments: Arguments) -> None:
    """Change the limits of a container."""
    from woodfrog.runtime.cgroups import updating

    warn = warner(arguments.common)
    flags = sorted(arguments.given & {name.replace("-", "_") for name in _PLACES})
    if arguments["resources"]:
        if flags:
            raise UsageError(
                f"--resources and --{flags[0].replace('_', '-')} can't be given together",
                hint="put all of it into the file",
            )
        from woodfrog.runtime import spec

        asked, warnings = spec.read_resources(arguments["resources"])
        for warning in warnings:
            warn(warning)
    else:
        asked = _asked(arguments)
    with held(arguments) as container:
        updating.update(container, asked, warn)


def _asked(arguments: Arguments) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (part, field) in _PLACES.items():
        value = arguments[name.replace("-", "_")]
        if value not in (None, ""):
            found.setdefault(part, {})[field] = _taken(name, part, value)
    return found


def _taken(name: str, part: str, value: Any) -> Any:
    if part == "memory":
        return size(name, value)
    return value


def size(name: str, text: str) -> int:
    """Return a number of bytes that may have a unit: 512, 1.5g, 64MiB; -1 is no limit."""
    if text == "-1":
        return -1
    number, unit = text.strip().lower(), ""
    for ending in ("ib", "b"):
        number = number.removesuffix(ending)
    if number[-1:] in _UNITS:
        number, unit = number[:-1], number[-1:]
    try:
        amount = float(number)
        if not 0 <= amount < 1 << 63:
            raise ValueError
        return int(amount * (1 << _UNITS[unit]))
    except ValueError:
        raise UsageError(f"--{name} takes a size such as 512m or -1, not {text!r}") from None


def _number(name: str, help: str) -> Flag:
    return Flag(name, help, value="N", number=True)


COMMAND = Command(
    "update",
    "ID",
    "Change the limits of a container, while it runs. What isn't named stays as it is.",
    (
        "woodfrog update --memory=512m --pids-limit=100 web",
        'echo \'{"cpu": {"shares": 512}}\' | woodfrog update --resources=- web',
    ),
    (
        Flag(
            "resources",
            "take them from this JSON file, as in linux.resources of a config (-: from stdin)",
            short="r",
            value="FILE",
        ),
        _number("blkio-weight", "weight for block devices, 10 to 1000"),
        _number("cpu-period", "length of a period for --cpu-quota, in microseconds"),
        _number("cpu-quota", "CPU time per period, in microseconds; -1 is no limit"),
        _number("cpu-burst", "CPU time that may be saved up for later periods, in microseconds"),
        _number("cpu-share", "weight for CPU time, 2 to 262144"),
        _number("cpu-rt-period", "period for real-time processes, in microseconds (cgroup v1)"),
        _number("cpu-rt-runtime", "CPU time per real-time period (cgroup v1)"),
        _number("cpu-idle", "1: run only when no other would; 0: as usual"),
        Flag("cpuset-cpus", "processors it may use: 0-2,7", value="LIST"),
        Flag("cpuset-mems", "memory nodes it may use", value="LIST"),
        Flag("memory", "most memory, in bytes or as 512m; -1 is no limit", value="SIZE"),
        Flag("memory-reservation", "memory that is left to it when it's short", value="SIZE"),
        Flag("memory-swap", "most memory and swap together; -1 is no limit", value="SIZE"),
        Flag("kernel-memory", "no effect: kernel memory counts as memory", value="SIZE"),
        Flag("kernel-memory-tcp", "most memory for TCP's buffers (cgroup v1)", value="SIZE"),
        _number("pids-limit", "most processes and threads; -1 is no limit"),
        Flag("l3-cache-schema", "", value="TEXT", refused="Intel RDT is not supported"),
        Flag("mem-bw-schema", "", value="TEXT", refused="Intel RDT is not supported"),
    ),
    run,
)
