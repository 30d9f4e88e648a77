"""/proc/PID/smaps: mappings with their flags."""

from functools import lru_cache

import msgspec

from woodfrog.kernel.procfs.reading import read_file

_PLAIN_CODE = b" r-xp 00000000 00:00 0 \n"

# Of what smaps prints per mapping, only the head line, the flags and the protection key are read.


class Mapping(msgspec.Struct, frozen=True):
    """One mapping. `flags` are the two-letter VmFlags of proc_pid_smaps(5)."""

    start: int
    end: int
    protection: int  # PROT_READ | PROT_WRITE | PROT_EXEC
    shared: bool
    offset: int
    device: tuple[int, int]
    inode: int
    name: bytes
    flags: frozenset[str]
    protection_key: int = 0


def parse_head(line: bytes) -> tuple[int, int, int, bool, int, tuple[int, int], int, bytes]:
    """Parse a line as it stands in maps and at the head of each entry in smaps."""
    fields = line.split(None, 5)
    start, _, end = fields[0].partition(b"-")
    permissions = fields[1]
    name = unescape(fields[5].rstrip(b"\n")) if len(fields) > 5 else b""
    return (
        int(start, 16),
        int(end, 16),
        _protection(permissions),
        permissions[3:4] == b"s",
        int(fields[2], 16),
        _device(fields[3]),
        int(fields[4]),
        name,
    )


# Of permissions and devices there are few, and of mappings many.
@lru_cache
def _protection(permissions: bytes) -> int:
    return sum(bit for bit, letter in ((1, b"r"), (2, b"w"), (4, b"x")) if letter in permissions)


@lru_cache
def _device(numbers: bytes) -> tuple[int, int]:
    major, _, minor = numbers.partition(b":")
    return int(major, 16), int(minor, 16)


def unescape(name: bytes) -> bytes:
    """Undo the octal escape that the kernel writes for a newline (seq_path, "\\n")."""
    return name.replace(b"\\012", b"\n")


def parse_smaps(text: bytes) -> list[Mapping]:
    """Parse a whole smaps."""
    found = []
    known: dict[bytes, frozenset[str]] = {}
    # What ends an entry is in no name: line breaks in those are escaped.
    head, *rest = text.split(b"\nVmFlags:")
    for entry in rest:
        flags, _, next_head = entry.partition(b"\n")
        if flags not in known:
            known[flags] = frozenset(flags.decode().split())
        _, has_key, key = head.rpartition(b"\nProtectionKey:")
        line = head.partition(b"\n")[0]
        found.append(Mapping(*parse_head(line), known[flags], int(key) if has_key else 0))
        head = next_head
    return found


def read_smaps(pid: int | str) -> list[Mapping]:
    """Read all mappings of a process, lowest address first."""
    return parse_smaps(read_file(f"/proc/{pid}/smaps"))


def read_maps(pid: int | str) -> list[tuple[int, int, int, bool, int, tuple[int, int], int, bytes]]:
    """Read the mappings without their flags, which costs no walk over page tables."""
    lines = read_file(f"/proc/{pid}/maps").split(b"\n")[:-1]
    return [parse_head(line) for line in lines]


def find_vdso(pid: int) -> tuple[int, int]:
    """Return where a process has the code of its vDSO; zeros if it has none."""
    lines = read_file(f"/proc/{pid}/maps").split(b"\n")
    heads = (parse_head(line) for line in lines if line.endswith(b"[vdso]"))
    return next(((head[0], head[1]) for head in heads if head[7] == b"[vdso]"), (0, 0))


def may_have_code_without_file(pid: int) -> bool:
    """Tell, before all mappings are read for it, whether there may be code that is no file's."""
    return _PLAIN_CODE in read_file(f"/proc/{pid}/maps")
