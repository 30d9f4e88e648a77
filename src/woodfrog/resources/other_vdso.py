"""The vDSO of another kernel build, whose functions programs know by their addresses.

It comes back where it was, as memory of the process's own. But its code reads data of a kernel that
isn't there: so each of its functions leads to that of this kernel's vDSO, mapped elsewhere, or to
the system call of the same name.
"""

import os
import struct

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel import elf, syscalls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.remote import cut_calls
from woodfrog.remote.address import free_range
from woodfrog.remote.program import Program
from woodfrog.remote.vdso import ARCH_MAP_VDSO_64, Vdso
from woodfrog.resources import threads
from woodfrog.resources.memory import MAP_ANONYMOUS, MAP_FIXED_NOREPLACE, MAP_PRIVATE, AddressSpace
from woodfrog.resources.process import Process

MOST_BYTES = 1 << 16

_PROT_READ_EXEC = 5
# Room for this kernel's vDSO with its data.
_SPAN = 1 << 18
_PREFIX = b"__vdso_"
_CALLS = {
    b"clock_gettime": SYS.CLOCK_GETTIME,
    b"clock_getres": SYS.CLOCK_GETRES,
    b"gettimeofday": SYS.GETTIMEOFDAY,
    b"time": SYS.TIME,
    b"getcpu": SYS.GETCPU,
    b"getrandom": SYS.GETRANDOM,
}
# What it keeps in the program's memory is the business of one build.
_ALWAYS_A_CALL = {b"getrandom"}
# mov rax, imm64; jmp rax
_JUMP = struct.Struct("<2sQ2s")
# mov eax, imm32; syscall; ret
_CALL = struct.Struct("<sI3s")


class OtherVdso:
    """The vDSO that an image's processes had, and how this kernel's stands in for it."""

    def __init__(self, image: bytes, ours: Vdso) -> None:
        if not 0 < len(image) <= MOST_BYTES or len(image) % 4096:
            raise ImageError("the image has an impossible vDSO")
        self._image = image
        self._ours = ours
        self._jumps: list[tuple[int, int]] = []
        self._patched = bytearray(image)
        present = {_plain(name): one for name, one in elf.functions(ours.image).items()}
        found = elf.functions(image)
        if not found:
            raise UnsupportedResource("the vDSO of the image's kernel has no functions")
        for name, one in found.items():
            self._stand_in(_plain(name), one, present.get(_plain(name)))

    def _stand_in(self, name: bytes, one: elf.Function, ours: elf.Function | None) -> None:
        if ours is not None and name not in _ALWAYS_A_CALL:
            if one.length < _JUMP.size:
                raise UnsupportedResource(
                    f"{os.fsdecode(name)} in the vDSO of the image's kernel is too short"
                )
            self._jumps.append((one.start, ours.start))
        elif name in _CALLS:
            call = _CALL.pack(b"\xb8", _CALLS[name], b"\x0f\x05\xc3")
            self._patched[one.start : one.start + len(call)] = call

    def refuse(self, process: Process) -> None:
        """Refuse a process with a thread in the middle of code that will be another."""
        start = process.memory.vdso_text
        end = start + len(self._image)
        for thread in process.threads:
            rip = threads.unpacked_registers(thread).rip
            if process.memory.finishes_calls and cut_calls.is_inside(rip, end):
                continue  # in code that comes back
            if start and start <= rip < end:
                raise UnsupportedResource(
                    f"thread {thread.tid} of process {process.pid} was inside the vDSO of another"
                    " kernel build",
                    hint="restore under the kernel that the checkpoint was made under",
                )

    def map(self, program: Program, space: AddressSpace, keep: tuple[int, int]) -> bytes:
        """Map both; returns what `space.vdso_text` must hold once the program has run."""
        used = [(one.start, one.end) for one in space.mappings]
        used += [keep, (space.vdso, space.vdso_text + len(self._image))]
        place = free_range(used, _SPAN).start
        program.call(SYS.ARCH_PRCTL, ARCH_MAP_VDSO_64, place)
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
        syscalls.mmap(program, space.vdso_text, len(self._image), _PROT_READ_EXEC, flags)
        patched = bytearray(self._patched)
        for start, target in self._jumps:
            _JUMP.pack_into(
                patched, start, b"\x48\xb8", place + self._ours.data_bytes + target, b"\xff\xe0"
            )
        return bytes(patched)


def _plain(name: bytes) -> bytes:
    return name.removeprefix(_PREFIX)
