"""Overlays that tests mount as a container's root, and what is to be seen in them."""

import bisect
import contextlib
import ctypes
import hashlib
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

from bundles import Bundle

libc = ctypes.CDLL(None, use_errno=True)


class OverlayRoot:
    """A bundle whose rootfs is an overlay with an upper directory of its own."""

    def __init__(
        self,
        directory: Path,
        lower: Path,
        arguments: list[str],
        *,
        options: str = "",
        name: str = "layer",
        relative: bool = False,
        layer_by_layer: bool = False,
        base: Path | None = None,
    ) -> None:
        self.bundle = Bundle(directory, arguments)
        self.base = base or directory / "tmpfs"
        self.upper = self.base / name / "upper"
        self._mounted: list[Path] = []
        self.base.mkdir()
        if not base:
            # What lies below /tmp may be an overlay itself, which can't be an upper directory.
            _mount("tmpfs", self.base, "tmpfs", "")
            self._mounted.append(self.base)
        for one in (self.upper, self.upper.parent / "work"):
            one.mkdir(parents=True)
        paths = [lower, self.upper, self.upper.parent / "work"]
        if relative:
            paths = [Path(os.path.relpath(path, directory)) for path in paths]
        keys = ("lowerdir", "upperdir", "workdir")
        before = os.getcwd()
        os.chdir(directory)
        try:
            if layer_by_layer:
                above = {
                    key: _escaped(str(one)) for key, one in zip(keys[1:], paths[1:], strict=True)
                }
                _mount_in_steps(self.bundle.rootfs, {"lowerdir+": str(lower)} | above)
            else:
                given = [
                    f"{key}={_escaped(str(one))}" for key, one in zip(keys, paths, strict=True)
                ]
                told = ",".join(filter(None, [*given, options]))
                _mount("overlay", self.bundle.rootfs, "overlay", told)
        except BaseException:
            self.close()
            raise
        finally:
            os.chdir(before)
        self._mounted.append(self.bundle.rootfs)
        self.bundle.add_host_programs()

    def lower_all(self, lower: Path) -> None:
        """Make the upper directory a lower one: nothing more can be written."""
        for mount in self.bundle.config["mounts"]:
            (self.upper / mount["destination"][1:]).mkdir(parents=True, exist_ok=True)
        subprocess.run(["umount", str(self.bundle.rootfs)], check=True)
        _mount("overlay", self.bundle.rootfs, "overlay", f"lowerdir={self.upper}:{lower}")

    def close(self) -> None:
        """Take the mounts away."""
        for path in reversed(self._mounted):
            subprocess.run(["umount", str(path)], check=True)
        self._mounted = []


def _escaped(path: str) -> str:
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")


def _mount(source: str, target: Path, kind: str, options: str) -> None:
    words = (source, str(target), kind)
    if libc.mount(*(word.encode() for word in words), 0, options.encode()):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {words} {options}: {os.strerror(error)}")


def _mount_in_steps(target: Path, options: dict[str, str]) -> None:
    """Mount an overlay by fsconfig(2), which takes lower layers one by one."""

    def call(number: int, *arguments: int | bytes) -> int:
        words = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
        result: int = libc.syscall(ctypes.c_long(number), *words)
        if result < 0:
            error = ctypes.get_errno()
            raise OSError(error, f"system call {number}: {os.strerror(error)}")
        return result

    fsopen, fsconfig, fsmount, move_mount = 430, 431, 432, 429
    set_string, create, empty_path = 1, 6, 4
    context = call(fsopen, b"overlay", 0)
    try:
        for name, value in options.items():
            call(fsconfig, context, set_string, name.encode(), value.encode(), 0)
        call(fsconfig, context, create, 0, 0, 0)
        mount = call(fsmount, context, 0, 0)
    finally:
        os.close(context)
    call(move_mount, mount, b"", -100, str(target).encode(), empty_path)
    os.close(mount)


def seen(root: Path) -> dict[bytes, dict[str, Any]]:
    """Return all that can be seen of the files below a directory, itself included."""
    top = os.fsencode(root)
    found: dict[bytes, dict[str, Any]] = {}
    files: dict[tuple[int, int], list[bytes]] = {}
    for place, directories, names in os.walk(top):
        for name in [b".", *directories, *names] if place == top else [*directories, *names]:
            path = os.path.join(place, name)
            inner = os.path.relpath(path, top)
            status = os.lstat(path)
            one: dict[str, Any] = {
                "mode": oct(status.st_mode),
                "owner": (status.st_uid, status.st_gid),
                "mtime": status.st_mtime_ns,
                "device": status.st_rdev,
                "attributes": _attributes(path),
            }
            if stat.S_ISREG(status.st_mode):
                same = (status.st_dev, status.st_ino)
                bisect.insort(files.setdefault(same, []), inner)
                one |= {
                    "size": status.st_size,
                    "links": status.st_nlink,
                    "names": files[same],
                    "is sparse": status.st_blocks * 512 + (1 << 20) < status.st_size,
                    "contents": _digest(path),
                }
            elif stat.S_ISLNK(status.st_mode):
                one["target"] = os.readlink(path)
            found[inner] = one
    return found


def _attributes(path: bytes) -> dict[str, bytes]:
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listxattr(path, follow_symlinks=False):
            found[name] = os.getxattr(path, name, follow_symlinks=False)
    return found


def _digest(path: bytes) -> str:
    """Return a digest of a file's data and where it lies, without reading its holes."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        position, size = 0, os.fstat(file.fileno()).st_size
        while position < size:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            data = os.pread(file.fileno(), position - start, start).rstrip(b"\0")
            digest.update(b"%d:" % start + data)
    return digest.hexdigest()
