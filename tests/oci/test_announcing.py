"""--save-restore-exec-argv: a program in the container hears of freezing and thawing."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bundles import Bundle
from containers import Container, Woodfrog

Make = Callable[[str], Bundle]

# Writes down the mode, and fails or hangs as files in /work tell it.
TELL = """
echo $GVISOR_SAVE_RESTORE_AUTO_EXEC_MODE >> /work/modes
if [ -e /work/hang ]; then exec sleep 1000; fi
if [ -e /work/fail ]; then exit 3; fi
"""
FLAG = "--save-restore-exec-argv=/bin/sh /work/tell"


@pytest.fixture
def container(woodfrog: Woodfrog, make_bundle: Make) -> Container:
    bundle = make_bundle(": > /work/ready; exec sleep 1000")
    (bundle.work / "tell").write_text(TELL)
    found = woodfrog.run(bundle)
    found.wait_for("ready")
    return found


def modes(container: Container) -> list[str]:
    """Return the modes that it has been told so far, and forget them."""
    path = container.bundle.work / "modes"
    found = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def test_it_hears_of_each_step(container: Container, tmp_path: Path) -> None:
    container.checkpoint(tmp_path / "one", FLAG, "--leave-running")
    assert modes(container) == ["save", "resume"]
    container.checkpoint(tmp_path / "two", FLAG)
    assert modes(container) == ["save"]
    restored = container.woodfrog.restore(container.bundle, tmp_path / "two", FLAG)
    assert modes(restored) == ["restore"]
    assert restored.state()["status"] == "running"


def test_a_checkpoint_that_fails_after_it_is_told_too(container: Container) -> None:
    container.checkpoint(Path("/proc/none"), FLAG, status=1)
    assert modes(container) == ["save", "resume"]


def test_a_paused_container_runs_for_so_long(container: Container, tmp_path: Path) -> None:
    container.woodfrog("pause", container.name)
    container.checkpoint(tmp_path / "image", FLAG, "--leave-running")
    assert modes(container) == ["save", "resume"]
    assert container.state()["status"] == "paused"


def test_the_command_after_a_kill_pauses_it_again(container: Container, tmp_path: Path) -> None:
    woodfrog = container.woodfrog
    woodfrog("pause", container.name)
    (container.bundle.work / "hang").touch()
    flags = [FLAG, f"--image-path={tmp_path}/image", container.name]
    with subprocess.Popen(woodfrog.command("checkpoint", *flags)) as command:
        container.wait_for("modes")
        command.kill()
    assert container.state()["status"] == "paused"


def test_its_failure_is_that_of_the_checkpoint(container: Container, tmp_path: Path) -> None:
    (container.bundle.work / "fail").touch()
    done = container.checkpoint(tmp_path / "image", FLAG, status=1)
    assert "/bin/sh (save) failed with exit status 3" in done.stderr
    assert not (tmp_path / "image").exists()
    assert container.state()["status"] == "running"


def test_it_is_ended_if_it_takes_too_long(container: Container, tmp_path: Path) -> None:
    (container.bundle.work / "hang").touch()
    flags = (FLAG, "--save-restore-exec-timeout=1s")
    done = container.checkpoint(tmp_path / "image", *flags, status=1)
    assert "(save) did not end within 1 s" in done.stderr
    assert container.woodfrog("ps", container.name).stdout.count("sleep 1000") == 1


def test_its_failure_ends_what_was_restored(container: Container, tmp_path: Path) -> None:
    container.checkpoint(tmp_path / "image")
    container.delete()
    (container.bundle.work / "fail").touch()
    flags = ("--detach", f"--image-path={tmp_path}/image", f"--bundle={container.bundle.directory}")
    done = container.woodfrog("restore", FLAG, *flags, "never", status=1)
    assert "/bin/sh (restore) failed with exit status 3" in done.stderr
    assert not (container.woodfrog.root / "never").exists()
