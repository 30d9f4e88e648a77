"""/proc/PID/mountinfo: the mounts of a mount namespace."""

import os
import re
from functools import lru_cache

import msgspec

_ESCAPE = rb"\\([0-7]{3})"


class Mount(msgspec.Struct, frozen=True):
    """One mount, as proc_pid_mountinfo(5) has it; `tags` are its optional fields."""

    mnt_id: int
    parent: int
    device: tuple[int, int]
    root: bytes
    point: bytes
    options: str
    tags: str
    type: str
    source: bytes
    super_options: str


def unescape(text: bytes) -> bytes:
    """Return a field as it was, before its special characters were written as octal numbers."""
    if b"\\" not in text:
        return text
    return re.sub(_ESCAPE, lambda match: bytes([int(match[1], 8)]), text)


# A look at a container reads the same mounts again and again.
@lru_cache(1024)
def parse_mount(line: bytes) -> Mount:
    """Parse one line."""
    left, _, right = line.partition(b" - ")
    fields, tail = left.split(b" "), right.split(b" ")
    major, _, minor = fields[2].partition(b":")
    return Mount(
        int(fields[0]),
        int(fields[1]),
        (int(major), int(minor)),
        unescape(fields[3]),
        unescape(fields[4]),
        fields[5].decode(),
        b" ".join(fields[6:]).decode(),
        tail[0].decode(),
        unescape(tail[1]),
        # Escaped as it came: options can hold commas of their own.
        os.fsdecode(tail[2]),
    )


def super_option(mount: Mount, name: str) -> bytes | None:
    """Return the value of one of the file system's own options, or None if it has none such."""
    for option in mount.super_options.split(","):
        key, _, value = option.partition("=")
        if key == name:
            return unescape(os.fsencode(value))
    return None


def inside(mount: Mount, path: bytes) -> bytes:
    """Return where in its file system a path is that leads into a mount."""
    return os.path.normpath(os.path.join(mount.root, os.path.relpath(path, mount.point)))


def read_mounts(pid: int | str) -> list[Mount]:
    """Read the mounts that the process sees, in mount order."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        return [parse_mount(line.rstrip(b"\n")) for line in file]
