"""What a thread asked of its CPU and its allocations: prctl(2), arch_prctl(2), set_mempolicy(2)."""

from collections.abc import Callable

from woodfrog.errors import ImageError
from woodfrog.image.record import Part
from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.program import Program
from woodfrog.resources import memory_policy
from woodfrog.resources.memory_policy import Policy

_PR_GET_TSC, _PR_SET_TSC, _TSC_ENABLE = 25, 26, 1
_PR_GET_SPECULATION_CTRL, _PR_SET_SPECULATION_CTRL = 52, 53
_PR_SPEC_PRCTL = 1  # that it can be set at all
_ARCH_GET_CPUID, _ARCH_SET_CPUID = 0x1011, 0x1012
# PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH, PR_SPEC_L1D_FLUSH
_SPECULATIONS = 3


class Controls(Part, frozen=True):
    """Each as the kernel tells it."""

    tsc: int
    cpu_id_faults: bool
    speculation: list[int]
    policy: Policy | None


def ask(program: Program) -> Callable[[], Controls]:
    """Add the calls that tell; run them in the thread."""
    tsc = bytearray(4)
    syscalls.prctl(program, _PR_GET_TSC, tsc)
    cpuid = program.may_fail(program.call(SYS.ARCH_PRCTL, _ARCH_GET_CPUID, 0))
    speculation = [
        program.may_fail(syscalls.prctl(program, _PR_GET_SPECULATION_CTRL, which))
        for which in range(_SPECULATIONS)
    ]
    policy = memory_policy.ask(program)

    def answered() -> Controls:
        return Controls(
            tsc=int.from_bytes(tsc, "little"),
            cpu_id_faults=program[cpuid] == 0,
            speculation=[max(program[one], 0) for one in speculation],
            policy=policy(),
        )

    return answered


def check(controls: Controls) -> None:
    """Check a record from an image before anything is made of it."""
    if len(controls.speculation) > _SPECULATIONS:
        raise ImageError("the image has speculation controls that nobody knows")
    if controls.policy:
        memory_policy.check(controls.policy)


def restore(program: Program, controls: Controls) -> Callable[[], list[str]]:
    """Ask for the same; returns what then tells what this machine can't do."""
    wishes: list[tuple[int, str]] = []
    for which, value in enumerate(controls.speculation):
        if value & _PR_SPEC_PRCTL:
            state = value & ~_PR_SPEC_PRCTL
            wish = syscalls.prctl(program, _PR_SET_SPECULATION_CTRL, which, state)
            wishes.append((wish, "speculation controls (PR_SET_SPECULATION_CTRL)"))
    if controls.policy:
        wish = memory_policy.set_of_thread(program, controls.policy)
        wishes.append((wish, "memory policy (set_mempolicy)"))
    if controls.cpu_id_faults:
        wish = program.call(SYS.ARCH_PRCTL, _ARCH_SET_CPUID, 0)
        wishes.append((wish, "faults at CPUID (ARCH_SET_CPUID)"))
    for wish, _ in wishes:
        program.may_fail(wish)
    if controls.tsc != _TSC_ENABLE:
        syscalls.prctl(program, _PR_SET_TSC, controls.tsc)
    return lambda: [what for wish, what in wishes if program[wish] < 0]
