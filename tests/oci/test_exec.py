"""exec: another process in a running container."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bundles import Bundle
from containers import Container, Woodfrog, eventually
from woodfrog.runtime.exec import inherit

Make = Callable[[str], Bundle]


@pytest.fixture
def container(woodfrog: Woodfrog, make_bundle: Make) -> Container:
    """A container that just sleeps."""
    found = woodfrog.run(make_bundle("touch /work/up; exec sleep 1000"))
    found.wait_for("up")
    return found


def test_it_is_in_the_containers_namespaces_and_cgroup(container: Container) -> None:
    script = "for k in pid net ipc uts mnt cgroup; do readlink /proc/self/ns/$k; done; hostname"
    done = container.woodfrog("exec", container.name, "sh", "-c", script)
    expected = [
        os.readlink(f"/proc/{container.init}/ns/{kind}")
        for kind in ("pid", "net", "ipc", "uts", "mnt", "cgroup")
    ]
    assert done.stdout.split() == [*expected, "frog"]
    own = container.woodfrog("exec", container.name, "cat", "/proc/self/cgroup").stdout
    assert {line.rpartition(":")[2] for line in own.splitlines()} == {"/"}


def test_its_exit_status_comes_back(container: Container) -> None:
    woodfrog = container.woodfrog
    assert woodfrog("exec", container.name, "sh", "-c", "exit 9", status=9).stderr == ""
    woodfrog("exec", container.name, "--", "sh", "-c", "kill -KILL $$", status=137)
    done = woodfrog("exec", container.name, "no-such-program", status=255)
    assert "executable file not found in $PATH" in done.stderr
    done = woodfrog("exec", "--cwd", "/no/where", container.name, "true", status=255)
    assert "'/no/where' failed" in done.stderr


def test_flags_change_the_process(container: Container) -> None:
    done = container.woodfrog(
        "exec", "-e", "A=1", "--env=B=2", "-u", "3:4", "-g", "5", "--cwd", "/tmp", "-c",
        "CAP_SYS_PTRACE", "--no-new-privs", container.name,
        "sh", "-c", "echo $A $B; id -u; id -g; id -G; pwd; grep -E 'Bnd|NoNew' /proc/self/status",
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[:5] == ["1 2", "3", "4", "4 5", "/tmp"]
    assert int(lines[5].split()[1], 16) >> 19 & 1
    assert lines[6].split()[1] == "1"


def test_a_process_file_and_a_pid_file_are_for_engines(
    container: Container, tmp_path: Path
) -> None:
    process = dict(container.bundle.process)
    process["args"] = ["sh", "-c", "touch /work/there; exec sleep 1000"]
    (tmp_path / "process.json").write_text(json.dumps(process))
    pid_file = tmp_path / "pid"
    container.woodfrog(
        "exec", "--process", str(tmp_path / "process.json"), "--detach", "--pid-file",
        str(pid_file), container.name, output=tmp_path / "output",
    )  # fmt: skip
    container.wait_for("there")
    pid = int(pid_file.read_text())
    assert os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{container.init}/ns/pid")
    pids = json.loads(container.woodfrog("ps", "--format=json", container.name).stdout)
    assert pid in pids


def test_a_stopped_container_runs_nothing(container: Container) -> None:
    container.woodfrog("kill", container.name, "KILL")
    eventually(container.has_ended, "it ends")
    done = container.woodfrog("exec", container.name, "true", status=255)
    assert "cannot exec in container" in done.stderr
    assert "stopped" in done.stderr


def test_a_terminal_of_its_own(container: Container) -> None:
    done = container.woodfrog("exec", "--tty", container.name, "tty")
    assert done.stdout.strip() == "/dev/pts/0"


def test_what_a_process_file_leaves_out_is_the_containers(
    woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path
) -> None:
    bundle = make_bundle("touch /work/up; exec sleep 1000")
    bundle.process["oomScoreAdj"] = 321
    bundle.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 123, "hard": 234}]
    bundle.process["user"]["umask"] = 0o137
    container = woodfrog.run(bundle)
    container.wait_for("up")
    show = "cat /proc/self/oom_score_adj; ulimit -n; umask; grep CapBnd /proc/self/status"
    path = tmp_path / "process.json"
    wanted: dict[str, object] = {
        "args": ["sh", "-c", show],
        "cwd": "/",
        "env": bundle.process["env"],
    }
    path.write_text(json.dumps(wanted))
    lines = woodfrog("exec", "--process", str(path), container.name).stdout.splitlines()
    own = Path(f"/proc/{container.init}/status").read_text()
    bounding = own.partition("CapBnd:")[2].split()[0]
    assert lines == ["321", "123", "0137", f"CapBnd:\t{bounding}"]
    wanted |= {"capabilities": {}, "oomScoreAdj": 400}
    path.write_text(json.dumps(wanted))
    lines = woodfrog("exec", "--process", str(path), container.name).stdout.splitlines()
    assert lines[0] == "400"
    assert lines[3] == "CapBnd:\t0000000000000000"


def test_labels_and_scheduling_come_from_the_container_unless_given() -> None:
    base = {"apparmorProfile": "docker-default", "ioPriority": {"class": "IOPRIO_CLASS_IDLE"}}
    given: dict[str, object] = {"apparmorProfile": "other", "capabilities": {}}
    inherit(given, base | {"capabilities": {"bounding": ["CAP_KILL"]}})
    assert given == {**base, "apparmorProfile": "other", "capabilities": {}}
    left_out: dict[str, object] = {}
    inherit(left_out, base)
    assert left_out == base
