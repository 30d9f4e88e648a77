"""/proc/PID/fdinfo/FD: what the kernel tells of one open file."""

from woodfrog.kernel.procfs.reading import read_file


def parse_fdinfo(text: str) -> tuple[dict[str, str], list[str]]:
    """Split into the named fields (pos, flags, mnt_id, ino, …) and all lines as they are."""
    fields: dict[str, str] = {}
    # Not by splitlines: names of files may have in them what only it takes for the end of a line.
    lines = text.removesuffix("\n").split("\n")
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and name not in fields:
            fields[name.strip()] = value.strip()
    return fields, lines


def read_fdinfo(pid: int, fd: int) -> tuple[dict[str, str], list[str]]:
    """Read and parse one descriptor's fdinfo."""
    return parse_fdinfo(read_file(f"/proc/{pid}/fdinfo/{fd}").decode(errors="surrogateescape"))
