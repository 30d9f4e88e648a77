"""The CPU: what it offered the container's programs, and whether another one will do."""

from enum import StrEnum
from typing import Self

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel import cpuid

_MOST_NAMES = 1000


class CpuCheck(StrEnum):
    """What the new CPU must have: all that there was, the registers in use, or nothing."""

    STRICT = "strict"
    USED = "used"
    NONE = "none"


class RegisterState(Part, frozen=True):
    """Where the CPU keeps one of its larger register states, as in a thread's `xstate`."""

    number: int
    offset: int
    size: int


class Cpu(Part, frozen=True):
    """A CPU as programs see it. `enabled` is the mask of its register states (XCR0)."""

    vendor: str
    model: str
    features: list[str]
    enabled: int
    area: int
    states: list[RegisterState]

    @classmethod
    def here(cls) -> Self:
        """Return the CPU that we run on."""
        found = cpuid.read()
        states = [
            RegisterState(number=one.number, offset=one.offset, size=one.size)
            for one in found.states
        ]
        return cls(
            vendor=found.vendor,
            model=found.model,
            features=found.features,
            enabled=found.enabled,
            area=found.area,
            states=states,
        )


def check(cpu: Cpu) -> None:
    """Check what an image says of its CPU; some of it is shown."""
    names = [cpu.vendor, cpu.model, *cpu.features]
    if len(names) > _MOST_NAMES or not all(len(n) < 64 and n.isprintable() for n in names):
        raise ImageError("the image names impossible features of its CPU")
    if any(not 2 <= one.number < 64 for one in cpu.states):
        raise ImageError("the image has impossible register states")


def refuse_lesser(there: Cpu, here: Cpu, used: int, how: CpuCheck) -> None:
    """Refuse to go on here with what ran there; `used` are the register states that it holds."""
    if how is CpuCheck.NONE:
        return
    needed = used if how is CpuCheck.USED else used | there.enabled
    if lacking := cpuid.state_names(needed & ~here.enabled):
        raise UnsupportedResource(
            f"this CPU ({here.model}) lacks registers that the container's had"
            f" ({there.model}): {', '.join(lacking)}",
            hint=_hint(used & ~here.enabled),
        )
    if how is CpuCheck.STRICT and (gone := sorted(set(there.features) - set(here.features))):
        raise UnsupportedResource(
            f"this CPU ({here.model}) lacks instructions that the container's had"
            f" ({there.model}): {', '.join(gone)}",
            hint=_hint(0),
        )
    places = {one.number: one for one in here.states}
    for one in there.states:
        if used >> one.number & 1 and places.get(one.number) != one:
            raise UnsupportedResource(
                f"this CPU ({here.model}) keeps {cpuid.state_names(1 << one.number)[0]} registers"
                f" elsewhere than the container's ({there.model})",
                hint="restore on a CPU of the same maker",
            )


def _hint(in_use: int) -> str:
    better = "restore on a CPU that has them"
    if in_use:
        return better
    return f"{better}; or with --cpu-check=used, if no program has chosen to use them"
