"""The keeper of a container whose changes are noted: its worker does the next commands."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from changing import MANY, SHARED, SOURCE, Changing, keepers

from bundles import Bundle, mount
from containers import REPOSITORY, Woodfrog, eventually, is_gone, launcher_without_python, verdict
from needs import needs
from overlays import OverlayRoot
from woodfrog.cli.keeper import ask
from woodfrog.kernel.abi.x86_64 import SYS

pytestmark = needs("root", "command gcc")

MiB = 1 << 20


@pytest.fixture
def changing(woodfrog: Woodfrog, build: Callable[..., Path]) -> Changing:
    return Changing(woodfrog, build(SOURCE))


def kept(changing: Changing) -> int:
    """Save a first image, of step 0, and return the keeper's pid when it is ready."""
    changing.save(0, "--track-changes")
    [keeper] = changing.keepers()
    changing.go_to(1)
    return ready(keeper)


def ready(keeper: int) -> int:
    """Wait until a keeper's worker has made all ready, and return the keeper's pid."""
    eventually(lambda: only_waits(worker_of(keeper)), "it only waits to be asked")
    return keeper


def only_waits(pid: int) -> bool:
    """Tell whether a process waits in poll(2), for however long it takes."""
    number, *arguments = Path(f"/proc/{pid}/syscall").read_text().split()
    return number == str(SYS.POLL) and int(arguments[2], 16) & 0xFFFFFFFF == 0xFFFFFFFF


def worker_of(keeper: int) -> int:
    """Return the process that works for a keeper."""
    children = Path(f"/proc/{keeper}/task/{keeper}/children")
    return int(eventually(children.read_text, "somebody works for it"))


def private_bytes(pid: int) -> int:
    """Return how much memory a process has for itself."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(size) for size in re.findall(r"Private_\w+: +(\d+)", text)) * 1024


def begun(
    changing: Changing, keeper: int, *words: str, **how: int
) -> tuple[subprocess.Popen[str], int]:
    """Begin a command, and return it and the worker that does it."""
    worker = worker_of(keeper)
    command = subprocess.Popen(
        changing.woodfrog.command(*words, changing.container.name),
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: has_locked(worker) or command.poll() is not None, "it is at work")
    return command, worker


def has_locked(pid: int) -> bool:
    """Tell whether a process has the lock of a container."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return any(os.readlink(one).endswith("/lock") for one in Path(f"/proc/{pid}/fd").iterdir())
    return False


def but_settings(files: Path) -> list[str]:
    """Return what a process has open, but what it keeps open of /proc/sys, and code it loads."""
    found = []
    for entry in files.iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(entry))
    others = ("/proc/sys/", f"{REPOSITORY}/", f"{sys.base_prefix}/")
    return sorted(one for one in found if not one.startswith(others))


def checkpoint(changing: Changing, number: int) -> tuple[str, ...]:
    """Return a command that builds on the first image."""
    flags = (f"--parent={changing.image(0)}", f"--image-path={changing.image(number)}")
    return ("checkpoint", "--leave-running", "--sync=none", *flags)


def goes_on(changing: Changing) -> None:
    """See that nothing is lost, and that it can be saved."""
    shutil.rmtree(changing.image(1), ignore_errors=True)
    changing.go_to(2)
    found = changing.save(1, f"--parent={changing.image(0)}")
    assert found["page_bytes"] < MANY / 3
    changing.end()
    eventually(lambda: not changing.keepers(), "no keeper is left")
    assert changing.verdict_of(1, 2) == "ok\n"


def test_it_does_the_next_commands(changing: Changing, woodfrog: Woodfrog) -> None:
    keeper = kept(changing)
    worker = worker_of(keeper)
    assert changing.save(1, f"--parent={changing.image(0)}")["compared_bytes"] < SHARED
    changing.go_to(2)
    woodfrog("rollback", f"--image-path={changing.image(1)}", changing.container.name)
    changing.go_to(3)
    flags = (f"--parent={changing.image(1)}", f"--image-path={changing.image(2)}")
    woodfrog("checkpoint", "--pre-dump", *flags, changing.container.name)
    # Who does these commands by himself replaces it.
    assert changing.keepers() == [keeper]
    assert worker_of(keeper) == worker
    assert private_bytes(keeper) + private_bytes(worker) < 60 * MiB
    said = woodfrog("rollback", "--image-path=/nowhere", changing.container.name, status=1)
    assert "/nowhere" in said.stderr
    # What a command that fails has left goes with the worker.
    eventually(lambda: worker_of(keeper) != worker, "there is another one")
    said = woodfrog(*checkpoint(changing, 1), changing.container.name, status=1)
    assert "already holds a checkpoint" in said.stderr
    assert changing.keepers() == [keeper]
    changing.end()
    assert changing.keepers() == []
    assert changing.verdict_of(1, 1) == "ok\n"


def test_nothing_of_a_command_stays_for_the_next(changing: Changing, tmp_path: Path) -> None:
    keeper = kept(changing)
    worker = worker_of(keeper)
    files = Path(f"/proc/{worker}/fd")
    had = but_settings(files)
    flags = ("checkpoint", "--leave-running", "--sync=none", "--image-path=image")
    command = changing.woodfrog.command(*flags, f"--parent={changing.image(0)}")
    for name, mask in (("first", 0o022), ("second", 0o122)):
        place = tmp_path / name
        place.mkdir()
        subprocess.run([*command, changing.container.name], check=True, cwd=place, umask=mask)
        assert (place / "image" / "checkpoint.img").is_file()
        assert (place / "image").stat().st_mode & 0o777 == 0o700 & ~mask
    assert worker_of(keeper) == worker
    eventually(lambda: but_settings(files) == had, "it has closed all others")
    assert os.readlink(f"/proc/{worker}/cwd") == "/"
    assert {os.readlink(files / str(number)) for number in range(3)} == {"/dev/null"}
    changing.end()
    eventually(lambda: not Path(f"/proc/{worker}").exists(), "the worker has ended, too")


def test_a_worker_that_was_killed_while_nobody_asked_is_missed_by_nobody(
    changing: Changing,
) -> None:
    keeper = kept(changing)
    worker = worker_of(keeper)
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{worker}").exists(), "it has ended")
    assert changing.save(1, f"--parent={changing.image(0)}")["compared_bytes"] < SHARED
    assert changing.keepers() == [keeper]
    assert worker_of(keeper) != worker
    changing.end()
    assert changing.verdict_of(1, 1) == "ok\n"


def test_a_worker_that_nobody_has_asked_ends_with_its_keeper(changing: Changing) -> None:
    keeper = kept(changing)
    worker = worker_of(keeper)
    os.kill(worker, signal.SIGSTOP)  # it can't look whether the keeper is there
    os.kill(keeper, signal.SIGKILL)
    eventually(lambda: is_gone(worker), "it has ended")


def test_who_asks_before_all_code_is_loaded_is_answered(
    changing: Changing, woodfrog: Woodfrog
) -> None:
    changing.save(0, "--track-changes")
    woodfrog("rollback", f"--image-path={changing.image(0)}", changing.container.name)
    [keeper] = changing.keepers()
    worker = worker_of(keeper)
    changing.go_to(1)
    assert changing.save(1, f"--parent={changing.image(0)}")["compared_bytes"] < SHARED
    assert (changing.keepers(), worker_of(keeper)) == ([keeper], worker)
    changing.end()
    assert changing.verdict_of(1, 1) == "ok\n"


@pytest.mark.parametrize("how", ["of other code", "in another place", "of fewer rights"])
def test_it_does_nothing_for_one_that_is(how: str, changing: Changing, tmp_path: Path) -> None:
    keeper = kept(changing)
    command = changing.woodfrog.command(*checkpoint(changing, 1), "--stats")
    if how == "of other code":
        other = tmp_path / "other"
        shutil.copytree(REPOSITORY / "src", other / "src")
        shutil.copy(REPOSITORY / "woodfrog", other)
        (other / ".venv").symlink_to(REPOSITORY / ".venv")
        command[0] = str(other / "woodfrog")
    elif how == "in another place":
        command = ["unshare", "--mount", *command]
    else:
        command = ["setpriv", "--bounding-set=-sys_module", *command]
    done = subprocess.run(
        [*command, changing.container.name], check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout)["compared_bytes"] < SHARED
    eventually(lambda: keeper not in changing.keepers(), "another one takes its place")
    assert len(changing.keepers()) == 1
    changing.end()
    assert changing.verdict_of(1, 1) == "ok\n"


@pytest.mark.parametrize("delay", [0, 0.01, 0.02, 0.04, 0.08])
@pytest.mark.parametrize("whom", ["keeper", "worker", "command"])
def test_whoever_is_killed_the_container_goes_on(
    whom: str, delay: float, changing: Changing
) -> None:
    keeper = kept(changing)
    command, worker = begun(changing, keeper, *checkpoint(changing, 1))
    time.sleep(delay)
    pid = {"keeper": keeper, "worker": worker, "command": command.pid}[whom]
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _, said = command.communicate(timeout=60)
    assert command.returncode in ((0, 1) if whom != "command" else (0, -signal.SIGKILL)), said
    assert "internal error" not in said
    goes_on(changing)


def test_an_interrupted_command_ends_when_all_is_as_it_was(changing: Changing) -> None:
    keeper = kept(changing)
    command, _ = begun(changing, keeper, *checkpoint(changing, 1))
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=60)
    assert (command.returncode, said) in ((0, ""), (130, "woodfrog: interrupted\n"))
    assert changing.image(1).joinpath("checkpoint.img").exists() == (command.returncode == 0)
    goes_on(changing)


def test_who_asks_it_starts_no_interpreter(changing: Changing) -> None:
    kept(changing)
    launcher = launcher_without_python(changing.woodfrog.directory / "clone")
    _, *words = changing.woodfrog.command("rollback", f"--image-path={changing.image(0)}")
    subprocess.run([launcher, *words, changing.container.name], check=True)
    changing.end()


def test_it_does_nothing_for_another_container(changing: Changing, woodfrog: Woodfrog) -> None:
    keeper = kept(changing)
    bundle = Bundle(woodfrog.directory / "other", ["/bin/sleep", "1000"])
    bundle.add_host_programs()
    other = woodfrog.run(bundle)
    image = woodfrog.directory / "image"
    _, *words = woodfrog.command(
        "checkpoint", "--leave-running", f"--image-path={image}", other.name
    )
    asked = ask(str(woodfrog.root), changing.container.name, words, os.environb)
    assert asked == (False, None)
    assert not image.exists()
    assert changing.keepers() == [keeper]
    other.delete()
    changing.end()


def test_two_at_once_are_done_one_after_the_other(changing: Changing) -> None:
    kept(changing)
    commands = [
        subprocess.Popen(
            changing.woodfrog.command(*checkpoint(changing, number), changing.container.name)
        )
        for number in (1, 2)
    ]
    assert [command.wait(60) for command in commands] == [0, 0]
    assert len(changing.keepers()) == 1
    changing.end()
    for number in (1, 2):
        assert changing.verdict_of(number, 1) == "ok\n"


def test_a_rollback_that_is_killed_is_done_or_not_or_the_end(
    changing: Changing, woodfrog: Woodfrog
) -> None:
    keeper = kept(changing)
    changing.save(1, f"--parent={changing.image(0)}")
    changing.go_to(2)
    command, worker = begun(changing, keeper, "rollback", f"--image-path={changing.image(1)}")
    time.sleep(0.03)
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)
    command.communicate(timeout=60)
    if not changing.container.has_ended():
        woodfrog("state", changing.container.name)
        (changing.bundle.work / "at2").unlink(missing_ok=True)
        changing.go_to(3)
    changing.end()
    assert changing.keepers() == []


@pytest.mark.parametrize("with_root", [False, True], ids=["files", "root"])
def test_its_worker_stays_whatever_has_happened(
    with_root: bool, woodfrog: Woodfrog, build: Callable[..., Path]
) -> None:
    """It ends if it has more open than before: then a command has left something in it."""
    program = build(Path(__file__).parent / "rollback/eventful.c")
    (woodfrog.directory / "lower/programs").mkdir(parents=True)
    shutil.copy(program, woodfrog.directory / "lower/programs")
    root = OverlayRoot(
        woodfrog.directory / "overlay", woodfrog.directory / "lower", ["/programs/" + program.name]
    )
    try:
        root.bundle.add_capabilities("CAP_SYS_ADMIN")
        root.bundle.add_mount(mount("/dev/shm", "tmpfs"))
        container = woodfrog.run(root.bundle)
        container.wait_for("ready")
        image = woodfrog.directory / "image"
        flags = ("--with-rootfs",) if with_root else ()
        container.checkpoint(image, "--leave-running", "--sync=none", "--track-changes", *flags)
        [keeper] = keepers(woodfrog)
        worker = worker_of(ready(keeper))
        for _ in range(2):
            (root.bundle.work / "change").touch()
            container.wait_for("changed")
            for name in ("change", "changed"):
                (root.bundle.work / name).unlink()
            woodfrog("rollback", f"--image-path={image}", container.name)
            assert worker_of(ready(keeper)) == worker
        assert verdict(container) == "ok\n"
        container.delete()
    finally:
        root.close()
