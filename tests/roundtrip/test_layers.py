"""A container's files travel in its image: what an overlay's writable layer has changed."""

import contextlib
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from layers import (
    SCRIPT,
    WAIT,
    MiB,
    Overlays,
    change,
    frozen,
    overlays,
)
from test_user_ids import GROUPS, USERS, give_user_namespace

from bundles import Bundle
from containers import Woodfrog
from needs import needs
from overlays import seen

__all__ = ["overlays"]  # the fixture
pytestmark = needs("root")


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


def test_a_root_that_its_first_process_sees_in_another_mount_namespace(
    woodfrog: Woodfrog, overlays: Overlays
) -> None:
    script = f"exec unshare --mount sh -c '{SCRIPT}'"
    first, second = overlays(script), overlays(script)
    for one in (first, second):
        one.bundle.add_capabilities("CAP_SYS_ADMIN")
    change(first.bundle.rootfs)
    container, image = frozen(woodfrog, first)
    container.wait()
    before = seen(first.bundle.rootfs)

    restored = woodfrog.restore(second.bundle, image)
    after = seen(second.bundle.rootfs)
    (second.bundle.work / "check").touch()

    assert restored.wait() == 0, restored.told()
    assert restored.told() == "before\nafter\n"
    assert after == before


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


def test_a_rollback_in_a_user_namespace_brings_owners_back(
    woodfrog: Woodfrog, overlays: Overlays
) -> None:
    overlay = overlays(
        f"echo hi > /made; chown 7:8 /made; : > /work/ready; {WAIT}; chown 0:0 /made;"
        " : > /work/changed; while :; do sleep 0.1; done"
    )
    give_user_namespace(overlay.bundle)
    container = woodfrog.run(overlay.bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--with-rootfs", "--leave-running", "--sync=none")
    (overlay.bundle.work / "check").touch()
    container.wait_for("changed")
    (overlay.bundle.work / "check").unlink()

    woodfrog("rollback", f"--image-path={image}", container.name)

    made = (overlay.bundle.rootfs / "made").stat()
    assert (made.st_uid, made.st_gid) == (USERS + 7, GROUPS + 8)


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
