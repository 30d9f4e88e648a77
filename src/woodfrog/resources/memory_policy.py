"""Memory policies: from which nodes of a NUMA machine memory comes (numa(7), mbind(2))."""

import struct
from collections.abc import Callable, Sequence

from woodfrog.errors import ImageError
from woodfrog.image.record import Part
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote.program import RECORD_BYTES, Program

_NODE_BYTES = 128  # as many nodes as the kernel can be built for
_MPOL_DEFAULT = 0
_MPOL_F_ADDR = 2
_INT = struct.Struct("<i")
ROOM = RECORD_BYTES + _INT.size


class Policy(Part, frozen=True):
    """A mode with its flags (MPOL_*), and a mask of nodes."""

    mode: int
    nodes: bytes


def ask(program: Program, address: int = 0) -> Callable[[], Policy | None]:
    """Add the call that tells the policy of the thread, or of an address."""
    mode, nodes = bytearray(4), bytearray(_NODE_BYTES)
    flags = _MPOL_F_ADDR if address else 0
    asked = program.call(SYS.GET_MEMPOLICY, mode, nodes, 8 * _NODE_BYTES, address, flags)
    program.may_fail(asked)  # without CONFIG_NUMA

    def answered() -> Policy | None:
        number = int.from_bytes(mode, "little")
        if program[asked] or number == _MPOL_DEFAULT:
            return None
        return Policy(mode=number, nodes=bytes(nodes).rstrip(b"\0"))

    return answered


def ask_kinds(program: Program, addresses: Sequence[int]) -> Callable[[], list[int]]:
    """Add the calls that tell of addresses whether they have a policy: 0, or a mode with flags.

    Each takes ROOM bytes of a program.
    """
    modes = bytearray(_INT.size * len(addresses))
    at = program.address_of(modes)
    rows = [
        (at + _INT.size * place, 0, 0, address, _MPOL_F_ADDR)
        for place, address in enumerate(addresses)
    ]
    program.call_each(SYS.GET_MEMPOLICY, rows)
    return lambda: [mode for (mode,) in _INT.iter_unpack(modes)]


def check(policy: Policy) -> None:
    """Check a policy from an image."""
    if len(policy.nodes) > _NODE_BYTES:
        raise ImageError("a memory policy of the image has too many nodes")


def set_of_thread(program: Program, policy: Policy) -> int:
    """Set the thread's policy; returns the result."""
    return program.call(SYS.SET_MEMPOLICY, policy.mode, *_mask(policy))


def set_of_range(program: Program, start: int, length: int, policy: Policy) -> int:
    """Set the policy of a range of addresses; returns the result."""
    return program.call(SYS.MBIND, start, length, policy.mode, *_mask(policy), 0)


def _mask(policy: Policy) -> tuple[bytes | int, int]:
    if not policy.nodes:
        return 0, 0
    return policy.nodes.ljust(_NODE_BYTES, b"\0"), 8 * _NODE_BYTES
