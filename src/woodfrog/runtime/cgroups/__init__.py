"""The container's control groups: made, joined, frozen, listed and removed; v1 and v2.

A container's groups are a plain value that state.json can hold: {"version": 1 or 2, "paths":
{controller: directory}}. The v2 tree's directory has the name "", and is there in version 1, too,
if such a tree is mounted beside the v1 hierarchies. Where systemd is asked to make them, "unit"
and "slice" name what it makes.
"""

from __future__ import annotations

import errno
import os
import time

from woodfrog.errors import StateError, WoodfrogError
from woodfrog.runtime.cgroups import nesting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Groups = dict[str, Any]

# Groups without a path of their own are below; of another --root, below this and "@" and it.
OUR_PARENT = "/woodfrog"


def directories(groups: Groups) -> list[str]:
    """Return the directories, each once (controllers can share one)."""
    return list(dict.fromkeys(groups["paths"].values()))


def check_unused(groups: Groups) -> None:
    """Raise StateError if the groups are there already, and in use or frozen."""
    hint = "another container's? give linux.cgroupsPath a path of its own"
    there = [directory for directory in directories(groups) if os.path.exists(directory)]
    if found := {pid for directory in there for pid in _below(directory)}:
        raise StateError(
            f"container's cgroup is not empty: {len(found)} process(es) found", hint=hint
        )
    if there and is_frozen(groups):
        raise StateError("container's cgroup unexpectedly frozen", hint=hint)


def make(groups: Groups) -> list[str]:
    """Make the groups and their parents; returns the directories that weren't there before."""
    made: list[str] = []
    with_cpuset = groups["paths"].get("cpuset")
    for path in directories(groups):
        try:
            _make_group(path, made, with_cpuset=path == with_cpuset)
        except OSError as error:
            remove_made(made, patience=0)
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise WoodfrogError(
                    f"cannot make the cgroup {path}: {error.strerror}",
                    hint="in a container? start it with --privileged and a private cgroup",
                ) from None
            raise
    if groups["version"] == 2:
        enable_controllers(groups["paths"][""])
    return made


def _make_group(path: str, made: list[str], *, with_cpuset: bool) -> None:
    for _ in range(10):
        try:
            os.mkdir(path, 0o755)
            made.append(path)
            break
        except FileExistsError:
            break
        except FileNotFoundError:
            # Another container's end may remove the parent between these two steps: try again.
            _make_group(os.path.dirname(path), made, with_cpuset=with_cpuset)
    else:
        raise WoodfrogError(f"cannot make the cgroup {path}: its parent keeps vanishing")
    if with_cpuset:
        fill_cpuset(path)


def fill_cpuset(path: str) -> None:
    """Give a v1 cpuset its parent's processors and memory: it takes no process without any."""
    if not os.path.exists(os.path.join(path, "cpuset.cpus")) or os.path.exists(
        os.path.join(path, "cgroup.controllers")
    ):
        return
    parent = os.path.dirname(path)
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not read(path, name):
            has = read(parent, name)
            if not has:
                fill_cpuset(parent)
                has = read(parent, name)
            write(path, name, has)


def enable_controllers(path: str, wanted: list[str] | None = None) -> None:
    """Let each parent hand its controllers (or those wanted) down; one that can't stays as it is.

    What was needed and couldn't be had is noticed when a limit is set.
    """
    parents: list[str] = []
    parent = os.path.dirname(path)
    while os.path.exists(os.path.join(parent, "cgroup.controllers")):
        parents.append(parent)
        parent = os.path.dirname(parent)
    for directory in reversed(parents):
        has = read(directory, "cgroup.controllers").split()
        handed_down = read(directory, "cgroup.subtree_control").split()
        for controller in has if wanted is None else wanted:
            if controller in has and controller not in handed_down:
                try:
                    write(directory, "cgroup.subtree_control", f"+{controller}")
                except OSError:
                    continue


def join(directories: list[str], pid: int) -> None:
    """Move a process into the groups that have these directories."""
    for directory in directories:
        write(directory, "cgroup.procs", str(pid))


def processes(groups: Groups) -> list[int]:
    """Return the host pids of every process in the groups and those below them."""
    paths = groups["paths"]
    top = paths.get("pids") or paths.get("freezer") or next(iter(paths.values()))
    return sorted(_below(top))


def _below(top: str) -> set[int]:
    found: set[int] = set()
    for directory in nesting.below(top):
        try:
            found.update(map(int, _members(directory).split()))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # removed just now
                raise
    return found


def _members(directory: str) -> str:
    try:
        return read(directory, "cgroup.procs")
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    # Of a group for threads only those are told.
    found = ""
    for thread in read(directory, "cgroup.threads").split():
        try:
            with open(f"/proc/{thread}/status", "rb", buffering=0) as file:
                status = file.readall().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += status.partition("\nTgid:")[2].partition("\n")[0]
    return found


def is_frozen(groups: Groups) -> bool:
    """Tell whether the container is paused."""
    directory, is_v1 = freezer(groups)
    try:
        if is_v1:
            return read(directory, "freezer.state") != "THAWED"
        return "frozen 1" in read(directory, "cgroup.events").splitlines()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return False
        raise


def freezer(groups: Groups) -> tuple[str, bool]:
    """Return the directory whose freezer counts, and whether that is v1's."""
    if "freezer" in groups["paths"]:
        return groups["paths"]["freezer"], True
    return groups["paths"].get("", ""), False


def frozen_below(groups: Groups) -> list[str]:
    """Return the directories of groups that programs made below, and froze by their own freezer."""
    found = []
    for kind, name in (("freezer", "freezer.self_freezing"), ("", "cgroup.freeze")):
        top = groups["paths"].get(kind)
        for directory in nesting.below(top) if top else ():
            try:
                if directory != top and read(directory, name) == "1":
                    found.append(directory)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV):  # removed just now
                    raise
    return found


def freeze_these(directories: list[str], frozen: bool) -> None:
    """Freeze or thaw groups below a container's own; who is in them need not stop at once."""
    for directory in directories:
        try:
            write(directory, "freezer.state", "FROZEN" if frozen else "THAWED")
        except FileNotFoundError:
            write(directory, "cgroup.freeze", str(int(frozen)))


def freeze(groups: Groups, frozen: bool, *, patience: float = 10.0) -> None:
    """Pause or resume every process of the container, and wait until it is so."""
    directory, is_v1 = freezer(groups)
    if not directory:
        raise WoodfrogError("cannot pause: no freezer cgroup is mounted")
    want = ("FROZEN" if frozen else "THAWED") if is_v1 else str(int(frozen))
    name = "freezer.state" if is_v1 else "cgroup.freeze"
    write(directory, name, want)
    end = time.monotonic() + patience
    while _not_yet(directory, is_v1, frozen):
        if time.monotonic() > end:
            write(directory, name, "THAWED" if is_v1 else "0")
            raise StateError(
                "cannot pause: a process doesn't stop (is it in an uninterruptible wait?)"
            )
        time.sleep(0.001)
        if is_v1:
            write(directory, name, want)


def _not_yet(directory: str, is_v1: bool, frozen: bool) -> bool:
    if is_v1:
        return read(directory, "freezer.state") != ("FROZEN" if frozen else "THAWED")
    return f"frozen {int(frozen)}" not in read(directory, "cgroup.events").splitlines()


def kill(groups: Groups, number: int) -> None:
    """Send a signal to every process of the container."""
    if number == 9 and groups["version"] == 2:
        try:
            write(groups["paths"][""], "cgroup.kill", "1")
            return
        except FileNotFoundError:  # before Linux 5.14
            pass
    for pid in processes(groups):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def remove(groups: Groups, *, patience: float = 10.0) -> None:
    """Remove the groups, which the container may have filled with more, once they are empty."""
    if "unit" in groups:
        from woodfrog.runtime.cgroups import systemd

        systemd.stop(groups)
    end = time.monotonic() + patience
    for top in directories(groups):
        while not _remove_below(top):
            if time.monotonic() > end:
                raise StateError(f"the cgroup {top} is still in use", hint="see its cgroup.procs")
            time.sleep(0.002)
        _remove_our_parent(top)


def _remove_our_parent(top: str) -> None:
    """Remove the group above a container's that is gone, if it is ours and nobody else is there.

    Whoever has made it may have gone when others were there still: the last one does it.
    """
    parent = os.path.dirname(top)
    if f"{os.path.basename(parent)}@".startswith(f"{OUR_PARENT[1:]}@"):
        remove_directories([parent])


def _remove_below(top: str) -> bool:
    for directory in reversed(nesting.below(top)):
        try:
            nesting.remove(directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
            raise
    return True


def remove_directories(paths: list[str]) -> None:
    """Remove those of the directories that are empty groups."""
    for path in reversed(paths):
        try:
            os.rmdir(path)
        except OSError:
            continue


def remove_made(made: list[str], *, patience: float = 10.0) -> None:
    """Remove groups that were made for a container, once what was killed in them is gone."""
    end = time.monotonic() + patience
    for path in reversed(made):
        # Those above the container's own may be in use by others.
        own = not any(other.startswith(f"{path}/") for other in made)
        while not _is_removed(path) and own and time.monotonic() < end:
            time.sleep(0.002)
        if own:
            _remove_our_parent(path)


def _is_removed(path: str) -> bool:
    try:
        os.rmdir(path)
    except OSError as error:
        return error.errno == errno.ENOENT
    return True


def read(directory: str, name: str) -> str:
    """Return what one file of a group says."""
    with open(nesting.open_file(directory, name, os.O_RDONLY), "rb", buffering=0) as file:
        return file.readall().decode().strip()


def write(directory: str, name: str, value: str) -> None:
    """Write one file of a group."""
    path = os.path.join(directory, name)
    descriptor = nesting.open_file(directory, name, os.O_WRONLY)
    try:
        os.write(descriptor, value.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(descriptor)
