"""What a test needs of the machine; a need that isn't met is a skip, or in CI a failure."""

import os
import shutil
from pathlib import Path

import pytest

needs = pytest.mark.needs

REQUIRE_ALL = os.environ.get("WOODFROG_REQUIRE_ALL") == "1"


def missing(need: str) -> str:
    """Say what this machine lacks for a need: root, a CPU flag, a kernel, a file, or a command."""
    kind, _, name = need.partition(" ")
    match kind:
        case "root":
            return "" if os.geteuid() == 0 else "not root"
        case "cpu":
            flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0]
            return "" if name in flags.split() else f"this CPU has no {name}"
        case "kernel":
            has = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
            return "" if has >= tuple(map(int, name.split("."))) else f"the kernel isn't {name}"
        case "file":
            return "" if Path(name).exists() else f"there is no {name}"
        case "command":
            return "" if shutil.which(name) else f"{name} is not installed"
    raise ValueError(f"unknown need: {need}")


def require(need: str) -> None:
    """Skip the running test, or in CI fail it, unless the machine has what it needs."""
    if need and (reason := missing(need)):
        if REQUIRE_ALL:
            pytest.fail(f"needs {need}: {reason}", pytrace=False)
        pytest.skip(f"needs {need}: {reason}")
