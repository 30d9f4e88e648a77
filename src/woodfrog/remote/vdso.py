"""The vDSO: where every process has executable code of the kernel's, and some room behind it."""

import ctypes
import struct
from collections.abc import Iterable
from functools import cache

from woodfrog.errors import KernelTooOld
from woodfrog.kernel.procfs.maps import read_maps

SYSCALL_INSTRUCTION = b"\x0f\x05"
ARCH_MAP_VDSO_64 = 0x2003
_AUXV_ENTRY = struct.Struct("<2Q")
_AT_SYSINFO_EHDR = 33
VDSO_NAMES = (b"[vvar]", b"[vvar_vclock]", b"[vdso]")


def vdso_of(pid: int) -> int:
    """Return where a process of ours has its vDSO: where exec(2) put it.

    From /proc/PID/auxv (AT_SYSINFO_EHDR, getauxval(3)): others could have moved it since.
    """
    with open(f"/proc/{pid}/auxv", "rb", buffering=0) as file:
        auxv = file.readall()
    pairs = dict(_AUXV_ENTRY.iter_unpack(auxv[: len(auxv) // 16 * 16]))
    found: int = pairs[_AT_SYSINFO_EHDR]
    return found


Part = tuple[bytes, int, int]  # its name, start and end


def layout_of(mappings: Iterable[Part]) -> list[Part]:
    """Return those that are a process's vDSO and its data, counted from where the first starts."""
    found = [one for one in mappings if one[0] in VDSO_NAMES]
    first = min((start for _, start, _ in found), default=0)
    return [(name, start - first, end - first) for name, start, end in found]


@cache
def own_vdso() -> "Vdso":
    """Return our own process's; those that we fork have the same."""
    return Vdso()


class Vdso:
    """This kernel's vDSO, as it stands in our own process.

    `layout` is where its parts are; `image` is its bytes; `padding` the offset of the unused end of
    its last page; `syscall` the offset of a system call instruction; `data_bytes` how much of the
    kernel's data is before it.
    """

    def __init__(self) -> None:
        mappings = read_maps("self")
        span = next(((m[0], m[1]) for m in mappings if m[7] == b"[vdso]"), None)
        if span is None:
            raise KernelTooOld(
                "this process has no vDSO, which woodfrog needs to enter others",
                hint="boot without vdso=0",
            )
        start, end = span
        # Its data pages stand before it.
        self.data_bytes = start - min(m[0] for m in mappings if m[7] in VDSO_NAMES)
        self.layout = layout_of((m[7], m[0], m[1]) for m in mappings)
        self.image = ctypes.string_at(start, end - start)
        self.padding = -(-len(self.image.rstrip(b"\0")) // 16) * 16
        self.syscall = self.image.index(SYSCALL_INSTRUCTION)

    @property
    def room(self) -> int:
        """How many bytes of padding there are."""
        return len(self.image) - self.padding
