"""The CPU that an image was made on, and what another one must have."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from shells import WAIT, frozen, shell

from bundles import Bundle, bind
from containers import Woodfrog
from images import doctored
from needs import needs
from woodfrog.kernel.cpuid import FEATURES, STATES
from woodfrog.resources.cpu import Cpu

pytestmark = needs("root")


@dataclass
class Frozen:
    """An image of a shell, and what restores it as if it were of another CPU."""

    woodfrog: Woodfrog
    bundle: Any
    image: Path
    cpu: Cpu

    def refused(self, *flags: str, **fields: Any) -> str:
        """Return what a restore says when it refuses the image of a CPU with other fields."""
        image = self.of(**fields)
        flags = (f"--image-path={image}", f"--bundle={self.bundle.directory}", *flags)
        return self.woodfrog("restore", "--detach", *flags, "other-cpu", status=1).stderr

    def of(self, **fields: Any) -> Path:
        """Return the image with other fields of its CPU."""
        target = self.image.with_name(f"other{len(list(self.image.parent.iterdir()))}")
        return doctored(self.image, target, cpu=msgspec.structs.replace(self.cpu, **fields))


@pytest.fixture
def shell_image(woodfrog: Woodfrog) -> Frozen:
    bundle = shell(woodfrog, f": > /work/ready; {WAIT}; echo ok > /work/out")
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = frozen(container)
    return Frozen(woodfrog, bundle, image, Cpu.here())


def goes_on(found: Frozen, image: Path, *flags: str) -> None:
    restored = found.woodfrog.restore(found.bundle, image, *flags)
    (found.bundle.work / "check").touch()
    assert restored.wait() == 0
    assert (found.bundle.work / "out").read_text() == "ok\n"


def test_instructions_that_are_missing_are_named(shell_image: Frozen) -> None:
    more = {"features": [*shell_image.cpu.features, "apx_f", "sm9"], "model": "Other CPU"}
    said = shell_image.refused(**more)
    assert "lacks instructions that the container's had (Other CPU): apx_f, sm9" in said
    assert "--cpu-check=used" in said
    goes_on(shell_image, shell_image.of(**more), "--cpu-check=used")


def test_fewer_instructions_are_no_obstacle(shell_image: Frozen) -> None:
    goes_on(shell_image, shell_image.of(features=shell_image.cpu.features[1:]))


def test_registers_that_are_missing_are_named(shell_image: Frozen) -> None:
    here = shell_image.cpu.enabled
    missing = next(number for number in reversed(STATES) if not here >> number & 1)
    said = shell_image.refused(enabled=here | 1 << missing)
    assert "lacks registers that the container's had" in said
    assert STATES[missing] in said
    # Nobody has used them.
    goes_on(shell_image, shell_image.of(enabled=here | 1 << missing), "--cpu-check=used")


@needs("command gcc")
def test_inspect_shows_the_cpu(woodfrog: Woodfrog, build: Callable[..., Path]) -> None:
    program = build(Path(__file__).parent / "cpu" / "holds_sse.c")
    bundle = Bundle(woodfrog.directory / "bundle", [f"/programs/{program.name}"])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    text = woodfrog("inspect", str(frozen(container))).stdout
    line = next(line for line in text.splitlines() if line.startswith("CPU "))
    cpu = Cpu.here()
    assert cpu.model in line
    assert f"{len(cpu.features)} features" in line
    assert "sse" in line.partition("in use: ")[2].split(", ")


def test_cpu_features_are_those_of_the_kernel(woodfrog: Woodfrog) -> None:
    known = set(woodfrog("cpu-features").stdout.split())
    found = json.loads(woodfrog("cpu-features", "--json").stdout)
    assert set(found["features"]) == known
    shown = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0]
    # Programs see what the kernel hides: what it knows to be broken (rdseed of some CPUs), or what
    # it has no name for, like some of the latest leaf.
    latest = {
        name for place, names in FEATURES.items() if place[:2] == (7, 1) for name in names.values()
    }
    assert known - set(shown.split()) <= {"rdseed"} | latest
    assert {"sse2", "syscall", "cx8"} <= known
