"""Whether two tasks have the same part (kcmp(2)): memory, descriptors and so on."""

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE

KCMP_FILE = 0
KCMP_VM, KCMP_FILES, KCMP_FS, KCMP_SIGHAND, KCMP_SYSVSEM = 1, 2, 3, 4, 6


def compare(kind: int, one: int, other: int) -> int:
    """Return 0 for the same part, else in which order the two are: 1 or 2."""
    return HERE.call(SYS.KCMP, one, other, kind, 0, 0)


def compare_files(one: int, descriptor: int, other: int, others: int) -> int:
    """Return likewise whether a descriptor of one task names the same open file as another's."""
    return HERE.call(SYS.KCMP, one, other, KCMP_FILE, descriptor, others)


def same(kind: int, one: int, other: int) -> bool:
    """Tell whether two tasks have the same part."""
    return compare(kind, one, other) == 0
