"""/proc/PID/smaps: mappings with their flags."""

from collections.abc import Iterable

import msgspec

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
    protection = (
        (1 if permissions[0:1] == b"r" else 0)
        | (2 if permissions[1:2] == b"w" else 0)
        | (4 if permissions[2:3] == b"x" else 0)
    )
    major, _, minor = fields[3].partition(b":")
    name = unescape(fields[5].rstrip(b"\n")) if len(fields) > 5 else b""
    return (
        int(start, 16),
        int(end, 16),
        protection,
        permissions[3:4] == b"s",
        int(fields[2], 16),
        (int(major, 16), int(minor, 16)),
        int(fields[4]),
        name,
    )


def unescape(name: bytes) -> bytes:
    """Undo the octal escape that the kernel writes for a newline (seq_path, "\\n")."""
    return name.replace(b"\\012", b"\n")


def parse_smaps(lines: Iterable[bytes]) -> list[Mapping]:
    """Parse the lines of a whole smaps."""
    found: list[Mapping] = []
    head = b""
    key = 0
    for line in lines:
        if line.startswith(b"VmFlags:"):
            flags = frozenset(line[8:].decode().split())
            found.append(Mapping(*parse_head(head), flags, key))
            key = 0
        elif line[:1] in b"0123456789abcdef":
            head = line
        elif line.startswith(b"ProtectionKey:"):
            key = int(line[14:])
    return found


def read_smaps(pid: int | str) -> list[Mapping]:
    """Read all mappings of a process, lowest address first."""
    with open(f"/proc/{pid}/smaps", "rb") as file:
        return parse_smaps(file)


def read_maps(pid: int | str) -> list[tuple[int, int, int, bool, int, tuple[int, int], int, bytes]]:
    """Read the mappings without their flags, which costs no walk over page tables."""
    with open(f"/proc/{pid}/maps", "rb") as file:
        return [parse_head(line) for line in file]
