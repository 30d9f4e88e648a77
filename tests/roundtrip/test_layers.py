"""A container's files travel in its image: what an overlay's writable layer has changed."""

import contextlib
import os
import shutil
import stat
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_user_ids import GROUPS, USERS, give_user_namespace

from bundles import HOST_DIRECTORIES, Bundle
from containers import Container, Done, Woodfrog
from images import doctored
from needs import needs
from overlays import OverlayRoot, seen
from woodfrog.resources.file_entry import Attribute, Entry, Moment
from woodfrog.resources.layer import Layer

pytestmark = needs("root")

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

    def make(script: str = SCRIPT, **how: object) -> OverlayRoot:
        directory = woodfrog.directory / f"overlay{len(made)}"
        arguments = ["/bin/sh", "-c", script]
        made.append(OverlayRoot(directory, lower, arguments, **how))  # type: ignore[arg-type]
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


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"options": "redirect_dir=on,metacopy=on"},
        {"options": "index=on"},
        {"options": "userxattr"},
        {"relative": True},
        {"name": "odd, \\ and: na me\\"},
        {"name": "odd, \\ and: na me\\", "layer_by_layer": True},
    ],
    ids=lambda how: "-".join(map(str, how)) or "plain",
)
def test_a_container_finds_its_files_in_another_overlay(
    how: dict[str, object], woodfrog: Woodfrog, overlays: Overlays
) -> None:
    first = overlays(**how)
    if how == {"options": "userxattr"}:
        with contextlib.suppress(OSError):
            os.setxattr(first.upper, "user.overlay.test", b"")
        if not os.listxattr(first.upper):
            pytest.skip("the tmpfs of this kernel (older than Linux 6.6) has no user attributes")
        os.removexattr(first.upper, "user.overlay.test")
    change(first.bundle.rootfs)
    if "redirect_dir" in str(how):
        (first.bundle.rootfs / "renamed").rename(first.bundle.rootfs / "with another name")
        assert any("overlay.redirect" in name for name in marks(first.upper))
        assert any("overlay.metacopy" in name for name in marks(first.upper))
    container, image = frozen(woodfrog, first)
    container.wait()
    before = seen(first.bundle.rootfs)
    woodfrog("verify", str(image))

    second = overlays(options=str(how.get("options", "")))
    restored = woodfrog.restore(second.bundle, image)
    after = seen(second.bundle.rootfs)
    (second.bundle.work / "check").touch()

    assert restored.wait() == 0, restored.told()
    assert restored.told() == "before\nafter\n"
    assert sorted(after) == sorted(before)
    assert after == before
    assert seen(woodfrog.directory / "lower")[b"files/removed"]


def marks(upper: Path) -> set[str]:
    """Return the attributes in an upper directory."""
    found: set[str] = set()
    for path in upper.rglob("*"):
        found |= set(os.listxattr(path, follow_symlinks=False))
    return found


def test_what_was_done_since_is_undone_in_the_same_overlay(
    woodfrog: Woodfrog, overlays: Overlays
) -> None:
    overlay = overlays()
    root = overlay.bundle.rootfs
    (root / "one").write_text("one")
    (root / "two").write_text("two")
    container, image = frozen(woodfrog, overlay, "--leave-running")
    before = seen(root)
    (overlay.bundle.work / "check").touch()
    assert container.wait() == 0
    container.delete()
    (overlay.bundle.work / "check").unlink()
    # Two files have become one, and others have changed, gone, come and become something else.
    (root / "one").unlink()
    os.link(root / "two", root / "one")
    (root / "files" / "changed").write_text("since")
    (root / "files" / "changed").chmod(0o600)
    (root / "log").unlink()
    (root / "log").mkdir()
    (root / "log" / "inside").mkdir()

    restored = woodfrog.restore(overlay.bundle, image)
    after = seen(root)
    (overlay.bundle.work / "check").touch()

    assert restored.wait() == 0
    assert restored.told() == "before\nafter\n"
    # What is in the container's layer and not in the image stays.
    since = b"files/changed"
    assert after.pop(since)["mode"] == "0o100600"
    before.pop(since)
    assert after == before


def test_a_read_only_root_gets_its_files(woodfrog: Woodfrog, overlays: Overlays) -> None:
    script = f"echo before > /file; exec 5< /file; : > /work/ready; {WAIT}; cat <&5"
    first = overlays(script)
    (first.bundle.rootfs / "files" / "removed").unlink()
    _, image = frozen(woodfrog, first)
    second = overlays()
    second.bundle.config["root"]["readonly"] = True

    restored = woodfrog.restore(second.bundle, image)
    (second.bundle.work / "check").touch()

    assert restored.wait() == 0
    assert restored.told().endswith("before\n")
    assert not (second.bundle.rootfs / "files" / "removed").exists()


def test_a_root_without_a_writable_layer_has_no_changes(
    woodfrog: Woodfrog, overlays: Overlays
) -> None:
    overlay = overlays(f"exec 5< /log; : > /work/ready; {WAIT}; cat <&5")
    (overlay.upper / "log").write_text("before\n")
    overlay.lower_all(woodfrog.directory / "lower")
    _, image = frozen(woodfrog, overlay)
    assert "0 files and directories with 0 B, 0 removed" in woodfrog("inspect", str(image)).stdout

    restored = woodfrog.restore(overlay.bundle, image)
    (overlay.bundle.work / "check").touch()

    assert restored.wait() == 0
    assert restored.told() == "before\n"


def test_what_was_mounted_on_new_directories_is_mounted_there(
    woodfrog: Woodfrog, overlays: Overlays
) -> None:
    script = "mkdir /inner /inner/seen && mount -t tmpfs none /inner && echo within > /inner/file"
    script += f" && : > /work/ready; {WAIT}; cat /inner/file; umount /inner; ls /inner"
    first = overlays(script)
    first.bundle.add_capabilities("CAP_SYS_ADMIN")
    container, image = frozen(woodfrog, first)
    container.wait()

    second = overlays(script)
    second.bundle.add_capabilities("CAP_SYS_ADMIN")
    restored = woodfrog.restore(second.bundle, image)
    (second.bundle.work / "check").touch()

    assert restored.wait() == 0, restored.told()
    assert restored.told() == "within\nseen\n"


def test_an_image_shows_its_layer(woodfrog: Woodfrog, overlays: Overlays) -> None:
    overlay = overlays()
    (overlay.bundle.rootfs / "files" / "removed").unlink()
    (overlay.bundle.rootfs / "large").write_bytes(bytes(3 * MiB))
    with (overlay.bundle.rootfs / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    _, image = frozen(woodfrog, overlay)

    shown = woodfrog("inspect", str(image)).stdout

    assert "changes of the root file system: " in shown
    assert " with 3.0 MiB, 1 removed" in shown


def test_a_root_that_is_no_overlay_is_refused(woodfrog: Woodfrog, overlays: Overlays) -> None:
    overlay = overlays()
    _, image = frozen(woodfrog, overlay)
    plain = Bundle(woodfrog.directory / "plain", ["/bin/sh", "-c", SCRIPT])
    plain.add_host_programs()
    plain.save()

    refused = woodfrog(
        "restore", f"--image-path={image}", "-b", str(plain.directory), "plain", status=1
    )
    assert "root is not an overlay" in refused.stderr
    assert not (plain.rootfs / "log").exists()
    container = woodfrog.run(plain)
    container.wait_for("ready")
    refused = container.checkpoint(woodfrog.directory / "other", "--with-rootfs", status=1)
    assert "root is not an overlay" in refused.stderr
    (plain.work / "check").touch()
    assert container.wait() == 0


@pytest.fixture
def reflinks(woodfrog: Woodfrog) -> Iterator[Path]:
    """A file system whose files can have blocks in common."""
    disk, place = woodfrog.directory / "disk", woodfrog.directory / "reflinks"
    with disk.open("wb") as file:
        file.truncate(512 * MiB)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(disk)], check=True)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", str(disk), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def used(directory: Path) -> int:
    """Return how many bytes of a file system are in use, on the disk."""
    os.sync()
    found = os.statvfs(directory)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


@needs("command mkfs.xfs")
@pytest.mark.parametrize("options", ["", "metacopy=on"])
def test_large_files_share_their_blocks_with_the_image(
    options: str, woodfrog: Woodfrog, reflinks: Path, overlays: Overlays
) -> None:
    (woodfrog.directory / "lower" / "owned").write_bytes(os.urandom(3 * MiB))
    overlay = overlays(base=reflinks / "base", options=options)
    root = overlay.bundle.rootfs
    (root / "large").write_bytes(os.urandom(64 * MiB + 12345))
    (root / "small").write_bytes(os.urandom(70_000))
    os.chown(root / "owned", 1, 2)
    container = woodfrog.run(overlay.bundle)
    container.wait_for("ready")
    before, occupied = seen(root), used(reflinks)
    image = reflinks / "image"

    container.checkpoint(image, "--with-rootfs", "--leave-running")

    assert (image / "checkpoint.img").stat().st_size > 64 * MiB
    assert used(reflinks) - occupied < 16 * MiB
    # What the container writes from now on is its own.
    with (root / "large").open("r+b") as file:
        file.write(os.urandom(MiB))
    woodfrog("verify", str(image))
    container.delete()
    second = overlays()
    restored = woodfrog.restore(second.bundle, image)
    assert seen(second.bundle.rootfs) == before
    restored.delete()
    overlay.close()


# ---- as an archive --------------------------------------------------------------------------


def applied(archive: Path, directory: Path) -> None:
    """Apply an OCI layer to a directory, with GNU tar."""
    with tarfile.open(archive, errors="surrogateescape") as members:
        names = [(os.fsencode(member.name), member.isdir()) for member in members]
    for path, is_directory in names:
        head, name = os.path.split(os.path.join(os.fsencode(directory), path))
        if name == b".wh..wh..opq":
            for inside in os.listdir(head) if os.path.isdir(head) else ():
                subprocess.run(["rm", "-rf", os.path.join(head, inside)], check=True)
        elif name.startswith(b".wh."):
            subprocess.run(["rm", "-rf", os.path.join(head, name[4:])], check=True)
        elif not is_directory:
            subprocess.run(["rm", "-rf", os.path.join(head, name)], check=True)
    command = ["tar", "-C", str(directory), "--xattrs", "--xattrs-include=*", "--numeric-owner"]
    subprocess.run([*command, "--exclude=.wh.*", "-xpf", str(archive)], check=True)


@pytest.mark.parametrize("status", ["running", "paused"])
def test_an_archive_of_the_layer_applies_to_the_lower_directory(
    status: str, woodfrog: Woodfrog, overlays: Overlays
) -> None:
    overlay = overlays()
    root = overlay.bundle.rootfs
    change(root)
    whiteout = root / "new" / ".wh.stays"
    container = woodfrog.run(overlay.bundle)
    container.wait_for("ready")
    if status == "paused":
        woodfrog("pause", container.name)
    archive = woodfrog.directory / "changes.tar"
    words = ("tar", "rootfs-upper", "--file", str(archive), container.name)
    refused = woodfrog(*words, status=1)
    assert "new/.wh.stays has a name that means a removed file" in refused.stderr
    assert not archive.exists()
    whiteout.unlink()
    with contextlib.suppress(OSError):
        os.setxattr(root / "new" / "hard", b"user.not \xff text", b"")
        assert "has an attribute 'user.not" in woodfrog(*words, status=1).stderr
        os.removexattr(root / "new" / "hard", b"user.not \xff text")
    # GNU tar lets it inherit what it hasn't.
    (root / "new" / "default-acl" / "before").unlink()

    woodfrog(*words)
    piped = woodfrog("tar", "rootfs-upper", container.name, output=woodfrog.directory / "piped.tar")
    assert piped.status == 0

    assert container.state()["status"] == status
    assert archive.stat().st_size < 10 * MiB
    assert archive.read_bytes() == (woodfrog.directory / "piped.tar").read_bytes()
    directory = overlay.base / "applied"
    shutil.copytree(woodfrog.directory / "lower", directory, symlinks=True, copy_function=copied)
    applied(archive, directory)
    expected, found = seen(root), seen(directory)
    assert expected.pop(b"new/socket")
    for one in (expected, found):
        one.pop(b".")
        for path in one:
            # What the lower directory had is a copy here.
            one[path].pop("mtime") if stat.S_ISDIR(int(one[path]["mode"], 8)) else None
            one[path].pop("links", None)
    assert sorted(found) == sorted(expected)
    assert found == expected
    if status == "paused":
        woodfrog("resume", container.name)
    (overlay.bundle.work / "check").touch()
    assert container.wait() == 0


def copied(source: str, target: str) -> None:
    """Copy a file of the lower directory with its mode and times."""
    shutil.copy2(source, target, follow_symlinks=False)


# ---- images that nobody's checkpoint made ---------------------------------------------------


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


def test_owners_in_a_user_namespace_are_kept(woodfrog: Woodfrog, overlays: Overlays) -> None:
    script = f"echo hi > /made; chown 7:8 /made; : > /work/ready; {WAIT}; stat -c %u:%g /made"
    first, second = overlays(script), overlays(script)
    for one in (first, second):
        give_user_namespace(one.bundle)
    container = woodfrog.run(first.bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--with-rootfs")
    container.wait()

    restored = woodfrog.restore(second.bundle, image)
    (second.bundle.work / "check").touch()

    assert restored.wait() == 0, restored.told()
    assert woodfrog.output(restored.name) == "7:8\n"
    made = (second.bundle.rootfs / "made").stat()
    assert (made.st_uid, made.st_gid) == (USERS + 7, GROUPS + 8)
