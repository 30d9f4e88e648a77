"""`wait`: exit statuses of processes that are nobody's children here, checkpoints, restores."""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from bundles import Bundle
from containers import Container, Woodfrog, eventually, is_gone, living_children
from woodfrog.engine.offers import offers

Make = Callable[[str], Bundle]

# Ends with the status that a file in /work tells.
SCRIPT = (
    ": > /work/ready; while [ ! -s /work/status ]; do sleep 0.02; done; exit $(cat /work/status)"
)


@contextlib.contextmanager
def waiting(woodfrog: Woodfrog, *flags: str) -> Iterator["subprocess.Popen[str]"]:
    """Start `wait`, and go on once it waits."""
    command = woodfrog.command("wait", *flags)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:

        def waits() -> bool:
            assert process.poll() is None, process.communicate()
            call = Path(f"/proc/{process.pid}/syscall").read_text().split()
            return call[0] == "7"  # poll(2): it has all it wants to hear of

        eventually(waits, "wait waits")
        try:
            yield process
        finally:
            process.kill()


def told(process: "subprocess.Popen[str]", name: str) -> int | None:
    """Return the exit status that `wait` tells."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    found = json.loads(out)
    assert found["id"] == name
    status: int | None = found["exitStatus"]
    return status


def known(status: int) -> set[int | None]:
    """Return what `wait` may tell of a process that another reaps: luck before Linux 6.15."""
    pidfd_tells = any(one.is_there for one in offers() if one.name.startswith("exit status by"))
    return {status} if pidfd_tells else {status, None}


def end(container: Container, text: str, file: str = "status") -> None:
    (container.bundle.work / "new").write_text(text)
    (container.bundle.work / "new").rename(container.bundle.work / file)


def started(woodfrog: Woodfrog, make_bundle: Make, script: str = SCRIPT) -> Container:
    container = woodfrog.run(make_bundle(script))
    container.wait_for("ready")
    return container


def test_an_exit_status_is_told_although_another_reaps(
    woodfrog: Woodfrog, make_bundle: Make
) -> None:
    container = started(woodfrog, make_bundle)
    with waiting(woodfrog, container.name) as process:
        end(container, "42")
        assert container.wait() == 42
        assert told(process, container.name) in known(42)
    # Now it is gone, and who reaped it is not us: nobody can know.
    done = woodfrog("wait", container.name)
    assert json.loads(done.stdout) == {"id": container.name, "exitStatus": None}


def test_a_zombie_tells_too(woodfrog: Woodfrog, make_bundle: Make) -> None:
    container = started(woodfrog, make_bundle)
    with waiting(woodfrog, container.name) as process:
        woodfrog("kill", container.name, "KILL")
        assert told(process, container.name) == 128 + 9
    # Nobody has reaped it so far.
    assert json.loads(woodfrog("wait", container.name).stdout)["exitStatus"] == 128 + 9


def test_who_stayed_with_it_has_kept_the_status(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Callable[[Bundle], str]
) -> None:
    bundle = make_bundle("exit 7")
    name = new_name(bundle)
    woodfrog("run", "--keep", "-b", str(bundle.directory), name, status=7)
    assert json.loads(woodfrog("wait", name).stdout)["exitStatus"] == 7


def test_other_processes_are_waited_for_by_either_pid(
    woodfrog: Woodfrog, make_bundle: Make
) -> None:
    container = started(woodfrog, make_bundle)
    for number, flag in enumerate(("--pid", "--rootpid")):
        script = SCRIPT.replace("ready", f"pid{number}").replace("status", f"status{number}")
        pid_file = woodfrog.directory / f"exec{number}.pid"
        woodfrog(
            *("exec", "--detach", f"--pid-file={pid_file}", container.name),
            *("/bin/sh", "-c", f"echo $$ > /work/own{number}; {script}"),
            output=woodfrog.directory / "exec.output",
        )
        container.wait_for(f"pid{number}")
        pid = int(pid_file.read_text())
        inside = int((container.bundle.work / f"own{number}").read_text())
        with waiting(
            woodfrog, flag, str(inside if flag == "--pid" else pid), container.name
        ) as one:
            end(container, str(20 + number), f"status{number}")
            eventually(lambda pid=pid: is_gone(pid), "the process ends")
            living_children({container.init})
            assert told(one, container.name) in known(20 + number)
    for flag in ("--pid=9999", f"--rootpid={os.getpid()}"):
        assert "has no process" in woodfrog("wait", flag, container.name, status=1).stderr


def test_a_checkpoint_is_waited_for(woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path) -> None:
    container = started(woodfrog, make_bundle)
    image = tmp_path / "image"
    ways = (["--leave-running"], ["--leave-running"], [f"--work-path={tmp_path}"])
    for number, flags in enumerate(ways):
        with waiting(woodfrog, "--checkpoint", container.name) as process:
            # One that fails isn't it.
            container.checkpoint(Path("/proc/none"), "--leave-running", status=1)
            assert process.poll() is None
            container.checkpoint(image / str(number), *flags)
            assert process.communicate() == ("", "")
            assert process.returncode == 0
    other = started(woodfrog, make_bundle)
    with waiting(woodfrog, "--checkpoint", other.name) as process:
        end(other, "0")
        assert other.wait() == 0
        # (Its own exit status may have been taken by the container's parent, who reaps all.)
        assert "ended without a checkpoint" in process.communicate()[1]


def test_a_restore_is_waited_for(woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path) -> None:
    container = started(woodfrog, make_bundle)
    assert (
        "was started, not restored"
        in woodfrog("wait", "--restore", container.name, status=1).stderr
    )
    image = tmp_path / "image"
    container.checkpoint(image)
    new = woodfrog.create(container.bundle)
    with waiting(woodfrog, "--restore", new.name) as process:
        flags = ["--detach", f"--image-path={image}"]
        woodfrog("restore", *flags, new.name, output=woodfrog.directory / f"{new.name}.output")
        assert process.communicate() == ("", "")
        assert process.returncode == 0
    woodfrog("wait", "--restore", new.name)
