"""What this CPU offers programs: the instruction sets of CPUID, and the states that XSAVE keeps."""

import ctypes
import mmap
from functools import cache

import msgspec

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE

# void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t answer[4])
_CPUID = bytes.fromhex(
    "53"  # push rbx
    "4989d0"  # mov r8, rdx
    "89f8"  # mov eax, edi
    "89f1"  # mov ecx, esi
    "0fa2"  # cpuid
    "418900"  # mov [r8], eax
    "41895804"  # mov [r8 + 4], ebx
    "41894808"  # mov [r8 + 8], ecx
    "4189500c"  # mov [r8 + 12], edx
    "5b"  # pop rbx
    "c3"  # ret
)
# uint64_t xgetbv(void): the states that the kernel has enabled
_XGETBV = bytes.fromhex(
    "31c9"  # xor ecx, ecx
    "0f01d0"  # xgetbv
    "48c1e220"  # shl rdx, 32
    "4809d0"  # or rax, rdx
    "c3"  # ret
)
_XGETBV_AT = 64
_READ_EXEC = mmap.PROT_READ | mmap.PROT_EXEC

EAX, EBX, ECX, EDX = range(4)

# (leaf, subleaf, register): bit and name, as /proc/cpuinfo writes it, of all that programs can use
# without the kernel's help. What only the kernel uses doesn't matter to a process.
FEATURES: dict[tuple[int, int, int], dict[int, str]] = {
    (1, 0, EDX): {
        0: "fpu", 4: "tsc", 8: "cx8", 15: "cmov", 19: "clflush", 23: "mmx", 24: "fxsr",
        25: "sse", 26: "sse2",
    },
    (1, 0, ECX): {
        0: "pni", 1: "pclmulqdq", 9: "ssse3", 12: "fma", 13: "cx16", 19: "sse4_1", 20: "sse4_2",
        22: "movbe", 23: "popcnt", 25: "aes", 27: "xsave", 28: "avx", 29: "f16c", 30: "rdrand",
    },
    (7, 0, EBX): {
        0: "fsgsbase", 3: "bmi1", 4: "hle", 5: "avx2", 8: "bmi2", 9: "erms", 11: "rtm",
        14: "mpx", 16: "avx512f", 17: "avx512dq", 18: "rdseed", 19: "adx", 21: "avx512ifma",
        23: "clflushopt", 24: "clwb", 26: "avx512pf", 27: "avx512er", 28: "avx512cd",
        29: "sha_ni", 30: "avx512bw", 31: "avx512vl",
    },
    (7, 0, ECX): {
        1: "avx512vbmi", 4: "pku", 5: "waitpkg", 6: "avx512_vbmi2", 8: "gfni", 9: "vaes",
        10: "vpclmulqdq", 11: "avx512_vnni", 12: "avx512_bitalg", 14: "avx512_vpopcntdq",
        22: "rdpid", 25: "cldemote", 27: "movdiri", 28: "movdir64b",
    },
    (7, 0, EDX): {
        2: "avx512_4vnniw", 3: "avx512_4fmaps", 4: "fsrm", 8: "avx512_vp2intersect",
        14: "serialize", 16: "tsxldtrk", 22: "amx_bf16", 23: "avx512_fp16", 24: "amx_tile",
        25: "amx_int8",
    },
    (7, 1, EAX): {
        0: "sha512", 1: "sm3", 2: "sm4", 4: "avx_vnni", 5: "avx512_bf16", 7: "cmpccxadd",
        10: "fzrm", 11: "fsrs", 12: "fsrc", 21: "amx_fp16", 23: "avx_ifma",
    },
    (7, 1, EDX): {
        4: "avx_vnni_int8", 5: "avx_ne_convert", 8: "amx_complex", 10: "avx_vnni_int16",
        14: "prefetchi", 19: "avx10", 21: "apx_f",
    },
    (0xD, 1, EAX): {0: "xsaveopt", 1: "xsavec", 2: "xgetbv1"},
    (0x80000001, 0, ECX): {
        0: "lahf_lm", 5: "abm", 6: "sse4a", 7: "misalignsse", 8: "3dnowprefetch", 11: "xop",
        16: "fma4", 21: "tbm",
    },
    (0x80000001, 0, EDX): {
        11: "syscall", 22: "mmxext", 27: "rdtscp", 29: "lm", 30: "3dnowext", 31: "3dnow",
    },
    (0x80000008, 0, EBX): {0: "clzero", 4: "rdpru"},
}  # fmt: skip

# The states that XSAVE keeps, by their numbers.
STATES = {
    0: "x87",
    1: "sse",
    2: "avx",
    3: "mpx-bounds",
    4: "mpx-status",
    5: "avx512-masks",
    6: "avx512-zmm",
    7: "avx512-zmm16",
    9: "pkru",
    17: "amx-config",
    18: "amx-tiles",
    19: "apx",
}


class State(msgspec.Struct, frozen=True):
    """Where XSAVE keeps one of the larger states, in the form that ptrace shows."""

    number: int
    offset: int
    size: int


class Cpu(msgspec.Struct, frozen=True):
    """A CPU as programs see it."""

    vendor: str
    model: str
    features: list[str]
    enabled: int  # the mask of states (XCR0)
    area: int  # bytes of the whole XSAVE area
    states: list[State]


class _Code:
    """The two instructions, as functions."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._memory.write(_CPUID.ljust(_XGETBV_AT, b"\xcc") + _XGETBV)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        HERE.call(SYS.MPROTECT, start, mmap.PAGESIZE, _READ_EXEC)
        word = ctypes.c_uint32
        self._cpuid = ctypes.CFUNCTYPE(None, word, word, ctypes.POINTER(word))(start)
        self._xgetbv = ctypes.CFUNCTYPE(ctypes.c_uint64)(start + _XGETBV_AT)

    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """Return eax, ebx, ecx and edx."""
        answer = (ctypes.c_uint32 * 4)()
        self._cpuid(leaf, subleaf, answer)
        return answer[0], answer[1], answer[2], answer[3]

    def xgetbv(self) -> int:
        """Return XCR0; needs the feature xsave."""
        return int(self._xgetbv())


@cache
def read() -> Cpu:
    """Return what the CPU that we run on offers.

    The kernel itself looks but once, when it starts; a virtual machine may take long to answer.
    """
    code = _Code()
    most, *vendor = code.cpuid(0)
    limits = {0: most, 0x80000000: code.cpuid(0x80000000)[EAX]}
    features = set()
    for (leaf, subleaf, register), names in FEATURES.items():
        # Beyond the highest leaf old CPUs answer with that of another.
        if leaf > limits[leaf & 0x80000000]:
            continue
        if subleaf and leaf == 7 and subleaf > code.cpuid(7)[EAX]:
            continue
        value = code.cpuid(leaf, subleaf)[register]
        features |= {name for bit, name in names.items() if value >> bit & 1}
    enabled = code.xgetbv() if "xsave" in features else 3
    states = []
    for number in range(2, 63):
        if enabled >> number & 1:
            size, offset, _, _ = code.cpuid(0xD, number)
            states.append(State(number, offset, size))
    return Cpu(
        vendor=_text([vendor[EBX - 1], vendor[EDX - 1], vendor[ECX - 1]]),
        model=_model(code) if limits[0x80000000] >= 0x80000004 else "",
        features=sorted(features),
        enabled=enabled,
        area=code.cpuid(0xD)[EBX] if states else 576,
        states=states,
    )


def _model(code: _Code) -> str:
    return _text([word for leaf in (2, 3, 4) for word in code.cpuid(0x80000000 + leaf)])


def _text(words: list[int]) -> str:
    raw = b"".join(word.to_bytes(4, "little") for word in words)
    return raw.rstrip(b"\0 ").decode("ascii", "replace").strip()


def state_names(mask: int) -> list[str]:
    """Return the names of the states in a mask."""
    return [STATES.get(n, f"state {n}") for n in range(64) if mask >> n & 1]
