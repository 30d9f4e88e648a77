"""Running containers that go back to an image in place."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from changing import MANY, OLDER, SHARED, SOURCE, Changing

from bundles import Bundle, bind, mount
from containers import Container, Woodfrog, eventually, is_gone, verdict
from images import doctored
from needs import needs
from overlays import OverlayRoot, seen
from woodfrog.resources.deleted_files import DeletedFile

SOURCES = Path(__file__).parent / "rollback"

pytestmark = needs("root", "command gcc")


@pytest.fixture
def changing(woodfrog: Woodfrog, build: Callable[..., Path]) -> Changing:
    return Changing(woodfrog, build(SOURCE))


def roll_back(changing: Changing, number: int, *flags: str, **how: Any) -> dict[str, Any]:
    """Set it back, and return the figures."""
    image = f"--image-path={changing.image(number)}"
    told = changing.woodfrog("rollback", image, "--stats", *flags, changing.container.name, **how)
    found: dict[str, Any] = json.loads(told.stdout)
    return found


@pytest.mark.parametrize("how", ["noted", "compared", "older kernel"])
def test_memory_goes_back_again_and_again(how: str, changing: Changing) -> None:
    environment = {"environment": OLDER} if how == "older kernel" else {}
    track = ("--track-changes",) if how == "noted" else ()
    changing.go_to(1)
    init = changing.container.init
    changing.save(0, *track, **environment)
    for goal in (2, 4):
        changing.go_to(goal)
        (changing.bundle.work / "at1").unlink()
        changing.aim_at(1)
        found = roll_back(changing, 0, **environment)
        changing.container.wait_for("at1")
        assert found["written_bytes"] < MANY / 3
        assert (found["looked_at_bytes"] < MANY / 3 + SHARED) == (how == "noted")
    assert changing.container.init == init
    assert len(changing.keepers()) == (how == "noted")
    assert verdict(changing.container) == "ok\n"


@pytest.fixture(params=[(), ("in a handler",)], ids=["plain", "in a handler"])
def eventful(
    request: pytest.FixtureRequest, woodfrog: Woodfrog, build: Callable[..., Path]
) -> Container:
    """Start a program in which much can happen."""
    program = build(SOURCES / "eventful.c")
    bundle = Bundle(woodfrog.directory / "bundle", ["/programs/" + program.name, *request.param])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))
    bundle.add_mount(mount("/dev/shm", "tmpfs"))
    bundle.add_capabilities("CAP_SYS_ADMIN")
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    return container


def test_what_has_happened_since_is_undone(eventful: Container, woodfrog: Woodfrog) -> None:
    image = woodfrog.directory / "image"
    eventful.checkpoint(image, "--leave-running", "--sync=none")
    for _ in range(2):
        (eventful.bundle.work / "change").touch()
        eventful.wait_for("changed")
        for name in ("change", "changed"):
            (eventful.bundle.work / name).unlink()
        woodfrog("rollback", f"--image-path={image}", eventful.name)
    assert verdict(eventful) == "ok\n"


def test_without_a_rollback_the_program_tells_that_much_has_happened(eventful: Container) -> None:
    (eventful.bundle.work / "change").touch()
    eventful.wait_for("changed")
    (eventful.bundle.work / "check").touch()
    assert eventful.wait() != 0
    said = (eventful.bundle.work / "out").read_text()
    for what in ("position", "counter", "descriptors", "threads", "heap", "name", "a file that"):
        assert what in said


def test_system_v_memory_goes_back(woodfrog: Woodfrog, build: Callable[..., Path]) -> None:
    changing = Changing(woodfrog, build(SOURCE), "System V")
    changing.go_to(1)
    changing.save(0)
    changing.go_to(2)
    (changing.bundle.work / "at1").unlink()
    changing.aim_at(1)
    roll_back(changing, 0)
    changing.container.wait_for("at1")
    assert verdict(changing.container) == "ok\n"


def test_an_image_that_builds_on_others_is_as_good(changing: Changing) -> None:
    changing.save(0)
    changing.go_to(1)
    changing.save(1, f"--parent={changing.image(0)}")
    changing.go_to(3)
    (changing.bundle.work / "at1").unlink()
    changing.aim_at(1)
    roll_back(changing, 1)
    changing.container.wait_for("at1")
    assert verdict(changing.container) == "ok\n"


@pytest.mark.parametrize("flags", [(), ("--track-changes",)], ids=["compared", "noted"])
def test_a_restored_container_goes_back_to_where_it_came_from(
    flags: tuple[str, ...], changing: Changing
) -> None:
    changing.go_to(1)
    changing.save(0)
    changing.end()
    (changing.bundle.work / "at1").unlink()
    changing.container = changing.woodfrog.restore(changing.bundle, changing.image(0), *flags)
    changing.container.wait_for("at1")
    changing.go_to(2)
    changing.aim_at(1)
    assert (roll_back(changing, 0)["looked_at_bytes"] < MANY / 3 + SHARED) == bool(flags)
    assert verdict(changing.container) == "ok\n"


def test_what_cannot_come_back_is_refused(woodfrog: Woodfrog) -> None:
    script = """
        (exec 9> /work/lock; flock 9; : > /work/ready; exec sleep 1000) &
        while :; do wait; sleep 0.01; done
    """
    bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sh", "-c", script])
    bundle.add_host_programs()
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    child = int(Path(f"/proc/{container.init}/task/{container.init}/children").read_text())
    eventually(lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n", "it is itself")
    container.checkpoint(image, "--leave-running", "--sync=none")
    os.kill(child, signal.SIGKILL)
    eventually(lambda: is_gone(child), "it ends")

    said = woodfrog("rollback", f"--image-path={image}", container.name, status=1).stderr

    assert "process 2 (sleep): it has ended since; and it has locks" in said
    assert "the container is running as before" in said
    woodfrog("rollback", f"--image-path={image}-none", container.name, status=1)
    woodfrog("exec", container.name, "/bin/true")
    container.delete()


def test_whatever_is_killed_half_way_is_as_it_was_or_set_back_or_ended(
    changing: Changing, woodfrog: Woodfrog
) -> None:
    """By no means is it a mixture of both."""
    changing.go_to(1)
    changing.save(0)
    ended = 0
    at_two = changing.bundle.work / "at2"
    for delay in (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4):
        if changing.container.has_ended():
            ended += 1
            for name in ("check", "at1", "out"):
                (changing.bundle.work / name).unlink(missing_ok=True)
            changing.aim_at(1)
            changing.container = woodfrog.restore(changing.bundle, changing.image(0))
            changing.container.wait_for("at1")
        changing.go_to(2)
        command = subprocess.Popen(
            woodfrog.command(
                "rollback", f"--image-path={changing.image(0)}", changing.container.name
            ),
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.wait(delay)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)  # the guardian as well
        command.wait()
        at_two.unlink(missing_ok=True)
        woodfrog("state", changing.container.name)
        eventually(lambda: at_two.exists() or changing.container.has_ended(), "it goes on")
    if not changing.container.has_ended():
        assert verdict(changing.container) == "ok\n"


def test_a_damaged_image_is_found_before_anything_is_touched(
    changing: Changing, woodfrog: Woodfrog
) -> None:
    changing.save(0, "--track-changes")
    changing.go_to(1)
    with (changing.image(0) / "checkpoint.img").open("r+b") as file:
        file.seek(4 << 20)
        file.write(b"not what it was")
    image = f"--image-path={changing.image(0)}"
    said = woodfrog("rollback", image, changing.container.name, status=1).stderr
    assert "is damaged" in said
    assert "the container is running as before" in said
    assert verdict(changing.container) == "ok\n"


def test_files_of_the_root_go_back_as_well(woodfrog: Woodfrog) -> None:
    lower = woodfrog.directory / "lower"
    (lower / "files").mkdir(parents=True)
    for name in ("kept", "changed", "removed"):
        (lower / "files" / name).write_text(f"{name} below\n")
    (lower / "files/link").symlink_to("nowhere")
    script = """
        cd /files; echo then > changed; rm removed; echo then > own; mkdir d; echo then > d/f
        echo then > two; ln two names; exec 5>> two
        : > /work/ready
        while [ ! -e /work/change ]; do :; done
        echo now > changed; echo now > own; rm -r d; echo now > new; mkdir e; echo now > e/f
        echo now >&5; ln two third
        : > /work/changed
        while :; do :; done
    """
    root = OverlayRoot(woodfrog.directory / "overlay", lower, ["/bin/sh", "-c", script])
    try:
        container = woodfrog.run(root.bundle)
        container.wait_for("ready")
        image = woodfrog.directory / "image"
        container.checkpoint(image, "--with-rootfs", "--leave-running", "--sync=none")
        then = seen(root.bundle.rootfs / "files")
        (container.bundle.work / "change").touch()
        container.wait_for("changed")
        (container.bundle.work / "change").unlink()
        assert seen(root.bundle.rootfs / "files") != then
        woodfrog("rollback", f"--image-path={image}", container.name)
        assert seen(root.bundle.rootfs / "files") == then
        opened = os.stat(f"/proc/{container.init}/fd/5")
        assert os.path.samestat(opened, (root.bundle.rootfs / "files/two").stat())

        container.delete()
    finally:
        root.close()


def test_files_of_lower_layers_come_back(woodfrog: Woodfrog) -> None:
    """Also those in directories that are gone, are others by now, or hidden by another file."""
    lower = woodfrog.directory / "lower"
    for name in ("kept", "gone/deep/file", "other/a", "other/d/b", "hidden/a", "half/a", "half/b"):
        (lower / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (lower / "files" / name).write_text(f"{name} below\n")
    (lower / "files/link").symlink_to("nowhere")
    os.link(lower / "files/kept", lower / "files/second")
    # Of "half" the image has a part.
    script = """
        cd /files; rm half/a; echo then > half/own
        : > /work/ready
        while :; do
            while [ ! -e /work/change ]; do :; done
            echo now > kept; rm second; rm -r gone; rm -r other; mkdir other other/d
            echo now > other/d/c; rm -r hidden; echo now > hidden; rm link; mkdir link
            rm -r half; mkdir half; echo now > half/b; chmod 700 .
            : > /work/changed
            while [ -e /work/change ]; do :; done
        done
    """
    root = OverlayRoot(woodfrog.directory / "overlay", lower, ["/bin/sh", "-c", script])
    try:
        container = woodfrog.run(root.bundle)
        container.wait_for("ready")
        image = woodfrog.directory / "image"
        container.checkpoint(image, "--with-rootfs", "--leave-running", "--sync=none")
        then = seen(root.bundle.rootfs / "files")
        for _ in range(2):
            (container.bundle.work / "change").touch()
            container.wait_for("changed")
            for name in ("change", "changed"):
                (container.bundle.work / name).unlink()
            assert seen(root.bundle.rootfs / "files") != then
            woodfrog("rollback", f"--image-path={image}", container.name)
            assert seen(root.bundle.rootfs / "files") == then
        container.delete()
    finally:
        root.close()


def test_no_image_writes_to_what_the_container_only_reads(woodfrog: Woodfrog) -> None:
    script = """
        echo read > /work/read; echo written > /work/written
        exec 3< /work/read 4<> /work/written; rm /work/read /work/written
        : > /work/ready
        while [ ! -e /work/check ]; do :; done
        cat <&3 >> /work/out; cat <&4 >> /work/out
    """
    bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sh", "-c", script])
    bundle.add_host_programs()
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    woodfrog("rollback", f"--image-path={image}", container.name)
    longer = doctored(image, woodfrog.directory / "longer", DeletedFile, size=100)
    said = woodfrog("rollback", f"--image-path={longer}", container.name, status=1).stderr
    assert "that it only reads now" in said
    assert verdict(container) == "read\nwritten\n"


IPC = ("shm", "msg", "sem")


def test_a_program_that_is_gone_is_missed_before_anything_is_touched(woodfrog: Woodfrog) -> None:
    script = (
        "cp /bin/sleep /work/nap; /work/nap 1000 & echo $! > /work/nap.pid; : > /work/ready;"
        " while :; do sleep 0.05; done"
    )
    bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sh", "-c", script])
    bundle.add_host_programs()
    bundle.add_capabilities("CAP_KILL")
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    napping = (bundle.work / "nap.pid").read_text().strip()
    in_container = ("exec", container.name, "sh", "-c")
    woodfrog(*in_container, f"kill {napping}; while [ -e /proc/{napping} ]; do sleep 0.05; done")

    nap = bundle.work / "nap"
    aside = nap.rename(bundle.work / "aside")
    back = ("rollback", "--file-validation=none", f"--image-path={image}", container.name)
    said = woodfrog(*back, status=1).stderr
    assert "/work/nap is gone since" in said
    os.mkfifo(nap)
    said = woodfrog(*back, status=1).stderr
    assert "/work/nap is no program any more" in said
    assert "the container is running as before" in said
    nap.unlink()
    aside.rename(nap)
    woodfrog(*back)
    woodfrog(*in_container, f"kill -0 {napping}")
    container.kill()
    assert "cannot roll back" in woodfrog(*back, status=1).stderr


def test_what_could_not_be_saved_is_no_obstacle_in_a_process_that_goes(
    woodfrog: Woodfrog,
) -> None:
    """It would not be kept anyway; and what it leaves behind goes, too."""
    bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sleep", "1000"])
    bundle.add_host_programs()
    container = woodfrog.run(bundle)
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    script = """
import ctypes, time
libc = ctypes.CDLL(None)
assert libc.syscall(323, 1) > 0  # userfaultfd, for user mode
assert libc.shmget(77, 4096, 0o1600) >= 0
assert libc.msgget(77, 0o1600) >= 0
assert libc.semget(77, 2, 0o1600) >= 0
open("/work/ready", "w")
time.sleep(1000)
"""
    woodfrog("exec", "--detach", container.name, "python3", "-c", script)
    container.wait_for("ready")
    refused = woodfrog("check", container.name, status=None)
    assert "userfaultfd" in refused.stdout + refused.stderr

    woodfrog("rollback", f"--image-path={image}", container.name)

    assert json.loads(woodfrog("ps", "--format=json", container.name).stdout) == [container.init]
    out = woodfrog("exec", container.name, "cat", *(f"/proc/sysvipc/{n}" for n in IPC)).stdout
    assert all(line.split()[0] == "key" for line in out.splitlines())
    container.delete()


def test_what_exec_had_brought_in_comes_again_with_its_children(woodfrog: Woodfrog) -> None:
    bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sleep", "1000"])
    bundle.add_host_programs()
    container = woodfrog.run(bundle)
    script = """
        echo begun > /work/log; : > /work/ready; n=0
        while :; do sleep 0.01; n=$((n+1)); echo $n > /work/count; done
    """
    woodfrog("exec", "--detach", container.name, "/bin/sh", "-c", script)
    container.wait_for("ready")
    container.wait_for("count")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    for _ in range(3):
        inside = json.loads(woodfrog("ps", "--format=json", container.name).stdout)
        os.kill(next(pid for pid in inside if pid != container.init), signal.SIGKILL)
        woodfrog("exec", container.name, "/bin/sh", "-c", "for i in 1 2 3; do sleep 0; done")
        woodfrog("rollback", f"--image-path={image}", container.name)
        (bundle.work / "count").unlink()
        container.wait_for("count")
    container.delete()


def test_what_has_changed_is_called_as_its_process_knows_it(woodfrog: Woodfrog) -> None:
    script = """
        mkfifo /work/fifo; exec 5<> /work/fifo
        : > /work/ready
        while [ ! -e /work/change ]; do :; done
        echo more >&5
        : > /work/changed
        while [ ! -e /work/check ]; do :; done
    """
    bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sh", "-c", script])
    bundle.add_host_programs()
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    (container.bundle.work / "change").touch()
    container.wait_for("changed")
    said = woodfrog("rollback", f"--image-path={image}", container.name, status=1).stderr
    assert "woodfrog: descriptor 5 of process 1 (sh): the fifo " in said
    assert "has changed since: " in said
