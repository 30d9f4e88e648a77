"""seccomp(2): strict mode, and chains of filters, oldest first."""

import struct

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.image.record import Part
from woodfrog.kernel import ptrace
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.bpf import SET_MODE_FILTER
from woodfrog.remote.program import Program

STRICT, FILTER = 1, 2
_SET_MODE_STRICT = 0
_FLAG_LOG = 2
_BPF_MAXINSNS = 4096
_BPF_RET_K, _RET_USER_NOTIF, _RET_ACTION = 0x06, 0x7FC00000, 0xFFFF0000


class Filter(Part, frozen=True):
    """One classic BPF program (struct sock_filter, 8 bytes each)."""

    instructions: bytes
    log: bool


def collect(pid: int, mode: int) -> list[Filter]:
    """Read the filters of a held task."""
    if mode != FILTER:
        return []
    found: list[Filter] = []
    try:
        while (instructions := ptrace.seccomp_filter(pid, len(found))) is not None:
            if asks_listener(instructions):
                raise UnsupportedResource(
                    "has a seccomp filter that asks a listener (SECCOMP_RET_USER_NOTIF), which is"
                    " outside and cannot be saved",
                    hint="start the container with a seccomp profile without SCMP_ACT_NOTIFY",
                )
            flags = ptrace.seccomp_filter_flags(pid, len(found))
            found.append(Filter(instructions=instructions, log=bool(flags & _FLAG_LOG)))
    except PermissionError as error:
        raise UnsupportedResource(
            "seccomp filters cannot be read from within a seccomp filter",
            hint="run woodfrog itself without a seccomp profile",
        ) from error
    return found


def asks_listener(instructions: bytes) -> bool:
    """Tell whether a filter leaves calls to a listener, which nobody is after a restore."""
    return any(
        code == _BPF_RET_K and operand & _RET_ACTION == _RET_USER_NOTIF
        for code, _, _, operand in struct.iter_unpack("<HBBI", instructions)
    )


def restore(program: Program, mode: int, filters: list[Filter], *, inherited: int) -> None:
    """Install the filters after the first `inherited` ones, or strict mode.

    The stub must be held with PTRACE_O_SUSPEND_SECCOMP, or the next call would meet them.
    """
    if mode == STRICT:
        program.call(SYS.SECCOMP, _SET_MODE_STRICT, 0, 0)
    for one in filters[inherited:]:
        count, rest = divmod(len(one.instructions), 8)
        if rest or not 0 < count <= _BPF_MAXINSNS:
            raise ImageError("a seccomp filter in the image has an impossible length")
        address = program.address_of(one.instructions)
        program_struct = struct.pack("<HxxxxxxQ", count, address)
        program.call(SYS.SECCOMP, SET_MODE_FILTER, _FLAG_LOG if one.log else 0, program_struct)
