"""Layers of images that no checkpoint makes."""

import os
import stat
from typing import Any

import pytest
from layers import CAPABILITY, Overlays, frozen, overlays

from bundles import HOST_DIRECTORIES
from containers import Done, Woodfrog
from images import doctored
from needs import needs
from overlays import OverlayRoot
from woodfrog.resources.file_entry import Attribute, Entry, Moment
from woodfrog.resources.layer import Layer

__all__ = ["overlays"]  # the fixture
pytestmark = needs("root")


def entry(path: bytes, mode: int, **fields: Any) -> Entry:
    """Return a file of an image that nobody has checked."""
    moment = Moment(seconds=0, nanoseconds=0)
    return Entry(
        path=path, mode=mode, **({"uid": 0, "gid": 0, "atime": moment, "mtime": moment} | fields)
    )


def link(path: bytes, target: str) -> Entry:
    """Return a symbolic link."""
    return entry(path, stat.S_IFLNK | 0o777, target=target.encode())


def file(path: bytes, **fields: Any) -> Entry:
    """Return an empty regular file that anybody may write."""
    return entry(path, stat.S_IFREG | 0o666, **fields)


def directory(path: bytes, **fields: Any) -> Entry:
    """Return a directory."""
    return entry(path, stat.S_IFDIR | 0o777, **fields)


def without_rights(overlay: OverlayRoot) -> None:
    """Take capabilities that some files need to be made."""
    for granted in overlay.bundle.process["capabilities"].values():
        granted[:] = [one for one in granted if one not in ("CAP_MKNOD", "CAP_SETFCAP")]


class Trap:
    """An image to be changed, and places outside the container that it may not reach."""

    def __init__(self, woodfrog: Woodfrog, overlays: Overlays) -> None:
        self._woodfrog = woodfrog
        self._overlays = overlays
        first = overlays()
        without_rights(first)
        container, self._image = frozen(woodfrog, first)
        container.delete()
        self.outside = woodfrog.directory / "outside"
        self.outside.mkdir()
        (self.outside / "kept").write_text("kept")
        self._number = 0

    def restored(
        self, entries: list[Entry], removed: tuple[bytes, ...] = ()
    ) -> tuple[OverlayRoot, Done]:
        """Restore the image with another layer into a container of its own."""
        self._number += 1
        target = self._woodfrog.directory / f"doctored{self._number}"
        log = file(b"log", size=7)
        image = doctored(self._image, target, Layer, entries=[log, *entries], removed=list(removed))
        overlay = self._overlays()
        (overlay.bundle.rootfs / "out").symlink_to(self.outside)
        name = f"trap-{os.getpid()}-{self._number}"
        overlay.bundle.config["linux"]["cgroupsPath"] = f"/{name}"
        without_rights(overlay)
        overlay.bundle.save()
        (overlay.bundle.work / "check").touch()
        self._woodfrog.names.append(name)
        flags = (f"--image-path={image}", "-b", str(overlay.bundle.directory))
        done = self._woodfrog("restore", *flags, name, status=None)
        assert os.listdir(self.outside) == ["kept"]
        assert (self.outside / "kept").read_text() == "kept"
        return overlay, done


@pytest.fixture
def trap(woodfrog: Woodfrog, overlays: Overlays) -> Trap:
    """An image to be changed."""
    return Trap(woodfrog, overlays)


def test_no_file_of_an_image_lands_outside_the_root(trap: Trap) -> None:
    out = str(trap.outside)
    up = "../" * 40 + out.lstrip("/")
    climbing = b"../" * 40 + os.fsencode(out)[1:] + b"/new"
    for entries in (
        [file(climbing)],
        [file(os.fsencode(out) + b"/new")],
        [directory(b"a"), file(b"a/../../new")],
        # Through a link that the image brings, and one that is there already.
        [link(b"link", out), file(b"link/new")],
        [link(b"link", up), file(b"link/new")],
        [link(b"link", out), directory(b"link/new")],
        [link(b"link", out), file(b"linked", link=b"link/kept")],
        [file(b"out/new")],
        [file(b"linked", link=b"out/kept")],
        [file(b"linked", link=b"never/there")],
        [directory(b"work/inside-a-mount"), file(b"work/../../../new")],
    ):
        _, done = trap.restored(entries)
        assert done.status == 1, entries
    for removed in (climbing, b"out/kept", b"../outside", b"."):
        _, done = trap.restored([], removed=(removed,))
        assert done.status == 1, removed
    # A link may lie there, and is replaced like any other file.
    overlay, done = trap.restored([link(b"link", out), file(b"link"), file(b"out")])
    assert done.status == 0, done
    assert stat.S_ISREG((overlay.bundle.rootfs / "out").lstat().st_mode)


def test_what_the_new_container_has_mounted_stays(trap: Trap) -> None:
    host = [
        link(os.fsencode(path)[1:], os.readlink(path))
        for path in HOST_DIRECTORIES
        if os.path.islink(path)
    ]
    overlay, done = trap.restored(
        [directory(b".", opaque=True), *host], removed=(b"work", b"usr", b"dev")
    )
    assert done.status == 0, done
    assert "after" in done.stdout
    places = {mount["destination"].split("/")[1] for mount in overlay.bundle.config["mounts"]}
    left = {"log", *places, *(os.fsdecode(one.path) for one in host)}
    assert set(os.listdir(overlay.bundle.rootfs)) == left
    _, done = trap.restored([file(b"work")])
    assert done.status == 1
    assert "has mounted something at or below /work" in done.stderr


def test_what_the_new_container_may_not_make_is_refused(trap: Trap, overlays: Overlays) -> None:
    device = entry(b"disk", stat.S_IFBLK | 0o666, device=os.makedev(259, 0))
    capable = file(
        b"capable", attributes=[Attribute(name=b"security.capability", value=CAPABILITY)]
    )
    trusted = file(b"trusted", attributes=[Attribute(name=b"trusted.frog", value=b"1")])
    for one, needed in (
        (device, "CAP_MKNOD"),
        (capable, "CAP_SETFCAP"),
        (trusted, "CAP_SYS_ADMIN"),
    ):
        overlay, done = trap.restored([file(b"before"), one])
        assert done.status == 1
        assert needed in done.stderr
        assert not (overlay.bundle.rootfs / "before").exists()
