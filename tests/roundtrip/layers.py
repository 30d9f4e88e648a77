"""Overlays that a container changes, so that there is a layer to be frozen."""

import contextlib
import os
import shutil
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from containers import Container, Woodfrog
from overlays import OverlayRoot

MiB = 1 << 20
WAIT = "while [ ! -e /work/check ]; do sleep 0.02; done"
# It writes a file of the layer before and after, through one descriptor.
SCRIPT = f"exec 5> /log; echo before >&5; : > /work/ready; {WAIT}; echo after >&5; cat /log"
ACL_ACCESS, ACL_DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
# VFS_CAP_REVISION_2 with the effective bit, and CAP_NET_RAW.
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)

Overlays = Callable[..., OverlayRoot]


@pytest.fixture
def overlays(woodfrog: Woodfrog) -> Iterator[Overlays]:
    """Make bundles with overlays over one lower directory."""
    made: list[OverlayRoot] = []
    lower = woodfrog.directory / "lower"
    fill_lower(lower)

    def make(script: str = SCRIPT, **how: Any) -> OverlayRoot:
        directory = woodfrog.directory / f"overlay{len(made)}"
        arguments = ["/bin/sh", "-c", script]
        made.append(OverlayRoot(directory, lower, arguments, **how))
        return made[-1]

    yield make
    for container in woodfrog.containers:
        container.delete()
    for one in made:
        one.close()


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return a POSIX ACL as its attribute has it: (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *one) for one in entries)


PLAIN_ACL = ((0x01, 6, -1 & 0xFFFFFFFF), (0x04, 4, -1 & 0xFFFFFFFF), (0x20, 0, -1 & 0xFFFFFFFF))
WIDER_ACL = acl(PLAIN_ACL[0], (0x02, 7, 1234), PLAIN_ACL[1], (0x10, 7, 0xFFFFFFFF), PLAIN_ACL[2])


def fill_lower(lower: Path) -> None:
    """Make the lower directory."""
    for name in ("removed", "changed", "touched", "becomes-directory", "stays", "linked"):
        (lower / "files").mkdir(parents=True, exist_ok=True)
        (lower / "files" / name).write_text(f"{name} of the lower layer\n" * 1000)
    os.link(lower / "files/linked", lower / "files/linked-too")
    (lower / "files/becomes-other-link").symlink_to("here")
    for name in ("removed-tree", "emptied", "becomes-file", "renamed", "stays-tree"):
        (lower / name / "deep" / "deeper").mkdir(parents=True)
        (lower / name / "deep" / "file").write_text(name)
        (lower / name / "deep" / "other").write_text(name)


def change(root: Path) -> None:
    """Make changes of all kinds in an overlay."""
    files = root / "files"
    (files / "removed").unlink()
    (files / "changed").write_text("changed")
    (files / "touched").chmod(0o4711)
    (files / "linked").write_text("one of two")
    (files / "becomes-directory").unlink()
    (files / "becomes-directory").mkdir(0o1777)
    (files / "becomes-other-link").unlink()
    (files / "becomes-other-link").symlink_to("../there (it) points")
    os.lchown(files / "becomes-other-link", 11, 12)
    shutil.rmtree(root / "removed-tree")
    shutil.rmtree(root / "emptied")
    (root / "emptied" / "deep").mkdir(parents=True)
    (root / "emptied" / "deep" / "file").write_text("anew")
    shutil.rmtree(root / "becomes-file")
    (root / "becomes-file").write_text("file")
    (root / "stays-tree" / "deep" / "other").unlink()
    shutil.copytree(root / "stays-tree", root / "copied-tree")

    new = root / "new"
    new.mkdir()
    (new / "empty").touch()
    (new / "setuid").write_text("root's")
    os.chown(new / "setuid", 1234, 2345)
    (new / "setuid").chmod(0o6755)
    os.setxattr(new / "setuid", "security.capability", CAPABILITY)
    (new / "hard").write_text("one file")
    os.link(new / "hard", root / "files" / "hard-too")
    os.link(new / "hard", new / "hard-three")
    with (new / "sparse").open("wb") as file:
        for at in (0, 3 * MiB + 5, 700 * MiB):
            file.seek(at)
            file.write(os.urandom(10_000))
        file.truncate(1024 * MiB + 3)
    with (new / "hole").open("wb") as file:
        file.truncate(100 * MiB)
    (new / "large").write_bytes(os.urandom(3 * MiB + 17))
    os.mkfifo(new / "fifo", 0o612)
    os.mknod(new / "null", stat.S_IFCHR | 0o640, os.makedev(1, 3))
    os.mknod(new / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 0))
    os.mknod(new / "socket", stat.S_IFSOCK | 0o700)
    for name in (
        b"\xff\xfe not text",
        b"new\nline",
        b".wh.stays",
        b"back\\slash, comma:colon",
        b" ",
    ):
        Path(os.fsdecode(os.fsencode(new) + b"/" + name)).write_bytes(name)
    for attribute in (b"user.colour", b"user.not \xff text"):
        with contextlib.suppress(OSError):  # before Linux 6.6 a tmpfs has none
            os.setxattr(new / "hard", attribute, b"green\0brown")
    (new / "acl").write_text("acl")
    os.setxattr(new / "acl", ACL_ACCESS, WIDER_ACL)
    (new / "default-acl").mkdir()
    (new / "default-acl" / "before").write_text("has none")
    os.setxattr(new / "default-acl", ACL_DEFAULT, WIDER_ACL)
    (new / "default-acl" / "after").write_text("has one")
    deep = new
    for number in range(60):
        deep = deep / f"{number:050}"
        deep.mkdir()
    (deep / "at the bottom").write_text("deep")
    for number, path in enumerate([new / "fifo", new / "hard", files / "changed", new, root]):
        os.utime(path, ns=(1_000_000_007 * number, 1_234_567_890_123_456_789 + number))
    # Not a number of nanoseconds that 64 bits can hold.
    os.utime(new / "empty", (40_000_000_000, 40_000_000_000))


def frozen(woodfrog: Woodfrog, overlay: OverlayRoot, *flags: str) -> tuple[Container, Path]:
    """Run a bundle until it is ready, freeze it, and return it and its image."""
    container = woodfrog.run(overlay.bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--with-rootfs", *flags)
    return container, image
