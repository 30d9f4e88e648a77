"""What a rollback in place makes anew: files that were closed, and processes that have ended."""

import fcntl
import os
from pathlib import Path

import pytest
from talking import set_back_after, talking, tell

from bundles import Bundle
from containers import CGROUPS, Woodfrog, verdict
from needs import needs

pytestmark = needs("root", "command gcc")

CHANGES = (
    "read",
    "write",
    "close one end",
    "close the other",
    "close all",
    "be others",
    "call",
    "press",
    "move",
    "remove",
    "in a thread",
)


@needs("file /proc/pressure/cpu")
def test_files_that_were_closed_or_have_moved_on_are_made_anew(woodfrog: Woodfrog) -> None:
    container = talking(woodfrog, "open_files.py")
    work = container.bundle.work
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    for change in CHANGES:
        tell(container, change)
        container.wait_for("changed")
        (work / "changed").unlink()
        if (work / "moved").exists():
            (work / "moved").rename(work / "log")
        if not (work / "log").exists():
            (work / "log").write_text("x" * 10)
        woodfrog("rollback", f"--image-path={image}", container.name)
    tell(container, "check")
    assert verdict(container) == "ok\n"


@needs("file /proc/pressure/cpu")
@pytest.mark.parametrize("change", ["close one end", "read"])
def test_a_file_that_may_not_be_opened_any_more_is_refused(change: str, woodfrog: Woodfrog) -> None:
    """Only if it is to be opened again."""

    def without_all_rights(bundle: Bundle) -> None:
        for granted in bundle.process["capabilities"].values():
            granted.remove("CAP_DAC_OVERRIDE")

    container = talking(woodfrog, "open_files.py", without_all_rights)
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    tell(container, change)
    container.wait_for("changed")
    log = container.bundle.work / "log"
    os.chown(log, 1000, 1000)
    back = ("rollback", f"--image-path={image}", container.name)
    if change != "read":
        said = woodfrog(*back, status=1).stderr
        assert "/work/log is to be opened again, and may not be" in said
        assert "the container is running as before" in said
        os.chown(log, 0, 0)
    woodfrog(*back)
    tell(container, "check")
    assert verdict(container) == "ok\n"


@pytest.mark.parametrize(
    ("program", "changes"),
    [
        ("family.py", ("end", "kill", "child", "be many", "kill", "end a thread")),
        ("terminal.py", ("read", "set", "group", "kill", "close", "set")),
        (
            "locks.py",
            ("unlock", "lock more", "open", "let lock", "open and close", "lock another"),
        ),
    ],
    ids=["processes", "terminals", "locks"],
)
def test_what_has_ended_or_moved_on_comes_back(
    program: str, changes: tuple[str, ...], woodfrog: Woodfrog
) -> None:
    container = talking(woodfrog, program)
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    for change in changes:
        set_back_after(change, container, image)
    inside = Path(f"/proc/{container.init}/root/proc").glob("[0-9]*/stat")
    assert not any("woodfrog" in stat.read_text() for stat in inside)
    tell(container, "check")
    assert verdict(container) == "ok\n"


def test_no_more_tasks_are_needed_than_the_image_has(woodfrog: Woodfrog) -> None:
    """Fewer are refused, before anything is touched."""
    container = talking(woodfrog, "family.py")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    files = (f"{place}{container.name}/pids.current" for place in ("pids/", ""))
    (current,) = [path for file in files for path in CGROUPS.glob(file)]
    tasks = int(current.read_text())
    tell(container, "kill")
    container.wait_for("changed")

    woodfrog("update", f"--pids-limit={tasks - 1}", container.name)
    said = woodfrog("rollback", f"--image-path={image}", container.name, status=1).stderr
    assert f"needs room for {tasks} tasks, and the container may have {tasks - 1}" in said
    assert "the container is running as before" in said

    woodfrog("update", f"--pids-limit={tasks}", container.name)
    woodfrog("rollback", f"--image-path={image}", container.name)
    tell(container, "check")
    assert verdict(container) == "ok\n"


def test_what_others_have_locked_since_is_refused(woodfrog: Woodfrog) -> None:
    container = talking(woodfrog, "locks.py")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    tell(container, "unlock")
    container.wait_for("changed")
    with (container.bundle.work / "ranges").open("r+") as ours:
        fcntl.lockf(ours, fcntl.LOCK_EX | fcntl.LOCK_NB, 2, 4)
        done = woodfrog("rollback", f"--image-path={image}", container.name, status=1)
    woodfrog("rollback", f"--image-path={image}", container.name)

    assert f"process {os.getpid()}, outside, has locked" in done.stderr
    assert "the container is running as before" in done.stderr
    tell(container, "check")
    assert verdict(container) == "ok\n"
