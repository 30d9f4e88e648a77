"""/proc/PID/fdinfo/FD: what the kernel tells of one open file."""


def parse_fdinfo(text: str) -> tuple[dict[str, str], list[str]]:
    """Split into the named fields (pos, flags, mnt_id, ino, …) and all lines as they are."""
    fields: dict[str, str] = {}
    lines = text.splitlines()
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and name not in fields:
            fields[name.strip()] = value.strip()
    return fields, lines


def read_fdinfo(pid: int, fd: int) -> tuple[dict[str, str], list[str]]:
    """Read and parse one descriptor's fdinfo."""
    with open(f"/proc/{pid}/fdinfo/{fd}", encoding="utf-8", errors="surrogateescape") as file:
        return parse_fdinfo(file.read())
