"""What belongs to a memory as a whole: the mm's fields, the vDSO, the core dump filter."""

import os
import struct

from woodfrog.kernel import syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.process import PR_SET_MM
from woodfrog.kernel.procfs.reading import read_file
from woodfrog.remote.program import Program
from woodfrog.remote.vdso import ARCH_MAP_VDSO_64
from woodfrog.resources.memory import AddressSpace

_MCL_FUTURE, _MCL_ONFAULT = 2, 4
_PR_SET_MM_MAP = 14
_MM_MAP = struct.Struct("<12QIi")


def read_core_dump_filter(pid: int) -> int:
    """Read /proc/PID/coredump_filter, which belongs to the memory."""
    return int(read_file(f"/proc/{pid}/coredump_filter"), 16)


def write_core_dump_filter(pid: int, value: int) -> None:
    """Set it again."""
    if value != read_core_dump_filter(pid):
        with open(f"/proc/{pid}/coredump_filter", "w", encoding="ascii") as file:
            file.write(hex(value))


def map_vdso(program: Program, space: AddressSpace) -> None:
    """Map the kernel's vDSO where the process had it."""
    if space.vdso:
        program.call(SYS.ARCH_PRCTL, ARCH_MAP_VDSO_64, space.vdso)


def lock_future(program: Program, space: AddressSpace) -> None:
    """Have new mappings locked, if they were."""
    if space.lock_future:
        on_fault = _MCL_ONFAULT if space.lock_future_on_fault else 0
        program.call(SYS.MLOCKALL, _MCL_FUTURE | on_fault)


def restore_fields(
    program: Program, space: AddressSpace, nameless: int | None, *, by_program: bool = True
) -> None:
    """Set the fields of the mm, and `by_program` /proc/PID/exe (PR_SET_MM_MAP, prctl(2)).

    `nameless` is the descriptor of an executable that has no path. Who names a program needs
    CAP_CHECKPOINT_RESTORE.
    """
    executable = nameless
    if not by_program:
        executable = -1
    elif executable is None:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        executable = syscalls.openat2(program, space.executable, flags)
    auxv = program.address_of(space.auxv)
    fields = bytearray(
        _MM_MAP.pack(
            space.start_code,
            space.end_code,
            space.start_data,
            space.end_data,
            space.start_brk,
            space.brk,
            space.start_stack,
            space.arg_start,
            space.arg_end,
            space.env_start,
            space.env_end,
            auxv,
            len(space.auxv),
            0,
        )
    )
    at = program.address_of(bytes(fields))
    program.store(at + _MM_MAP.size - 4, executable)
    syscalls.prctl(program, PR_SET_MM, _PR_SET_MM_MAP, at, _MM_MAP.size, 0)
    if by_program and nameless is None:
        syscalls.close(program, executable)
