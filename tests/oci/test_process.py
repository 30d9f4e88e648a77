"""What a process object asks for beside program and rights: scheduling, descriptors, notices."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundles import Bundle
from containers import Container, Done, Woodfrog, eventually

Make = Callable[[str], Bundle]
Name = Callable[[Bundle], str]
Run = Callable[..., Done]

FOREVER = "touch /work/up; exec sleep 1000"


@pytest.fixture
def start(woodfrog: Woodfrog, make_bundle: Make) -> Callable[..., Container]:
    """Return what starts a sleeping container with a changed process object."""

    def start_it(**process: Any) -> Container:
        bundle = make_bundle(FOREVER)
        bundle.process.update(process)
        container = woodfrog.run(bundle)
        container.wait_for("up")
        return container

    return start_it


def in_container(container: Container, *command: str, **process: Any) -> str:
    """Run a command in the container by --process, and return its output."""
    path = container.bundle.directory / "process.json"
    wanted = {**container.bundle.process, "args": list(command), **process}
    path.write_text(json.dumps({name: value for name, value in wanted.items() if value}))
    return container.woodfrog("exec", "--process", str(path), container.name).stdout


def test_the_scheduler_is_set_and_taken_over_by_exec(start: Callable[..., Container]) -> None:
    container = start(scheduler={"policy": "SCHED_BATCH", "nice": 7})
    assert os.sched_getscheduler(container.init) == os.SCHED_BATCH
    assert os.getpriority(os.PRIO_PROCESS, container.init) == 7
    show = ("sh", "-c", "chrt -p $$; nice")
    assert in_container(container, *show, scheduler=None).split()[-1] == "7"
    assert "SCHED_IDLE" in in_container(container, *show, scheduler={"policy": "SCHED_IDLE"})


def test_an_io_priority(start: Callable[..., Container]) -> None:
    container = start(ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 6})
    assert in_container(container, "ionice", "-p", "1") == "best-effort: prio 6\n"
    assert in_container(container, "ionice", ioPriority=None) == "best-effort: prio 6\n"
    idle = {"class": "IOPRIO_CLASS_IDLE"}
    assert in_container(container, "ionice", ioPriority=idle) == "idle\n"


def test_processors_of_an_exec(start: Callable[..., Container], woodfrog: Woodfrog) -> None:
    container = start()
    everything = os.sched_getaffinity(container.init)
    one = max(everything)
    show = ("grep", "-h", "Cpus_allowed_list", "/proc/self/status")
    final = in_container(container, *show, execCPUAffinity={"initial": "0", "final": str(one)})
    assert final.split()[1] == str(one)
    # What we are bound to ourselves is not the container's business.
    bound = ["taskset", "-c", str(one), *woodfrog.command("exec", container.name, *show)]
    found = subprocess.run(bound, capture_output=True, text=True).stdout
    assert found.split()[1] != str(one) or len(everything) == 1


def test_a_personality(make_bundle: Make, run: Run) -> None:
    bundle = make_bundle("uname -m")
    bundle.config["linux"]["personality"] = {"domain": "LINUX32"}
    assert run(bundle).stdout == "i686\n"


@pytest.mark.parametrize(
    "place, value, message",
    [
        (["process", "scheduler"], {"policy": "FIFO"}, "must be one of SCHED_OTHER"),
        (["process", "scheduler"], {"policy": "SCHED_FIFO", "flags": ["X"]}, "flags is 'X'"),
        (["process", "ioPriority"], {"class": "IOPRIO_CLASS_BE", "priority": 8}, "must be 0 to 7"),
        (["process", "execCPUAffinity"], {"initial": "0-x"}, "is no list of numbers"),
        (["process", "execCPUAffinity"], {"final": "3-1"}, "ends before it begins"),
        (["linux", "personality"], {"domain": "BSD"}, "must be one of LINUX, LINUX32"),
        (["linux", "memoryPolicy"], {"mode": "MPOL_BEST"}, "must be one of MPOL_DEFAULT"),
        (["linux", "memoryPolicy"], {"mode": "MPOL_BIND", "nodes": "4000"}, "Invalid argument"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    make_bundle: Make, run: Run, place: list[str], value: dict[str, Any], message: str
) -> None:
    bundle = make_bundle("true")
    bundle.config[place[0]][place[1]] = value
    done = run(bundle, status=1)
    assert message in done.stderr
    assert ".".join(place) in done.stderr


def test_a_created_container_holds_nothing_of_its_caller_and_dies_of_sigterm(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name, tmp_path: Path
) -> None:
    bundle = make_bundle(FOREVER)
    name = new_name(bundle)
    command = woodfrog.command("create", "-b", str(bundle.directory), name)
    with (tmp_path / "output").open("w") as output, (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, close_fds=False
        )
    state = json.loads(woodfrog("state", name).stdout)
    descriptors = Path(f"/proc/{state['pid']}/fd")
    held = {os.readlink(entry) for entry in descriptors.iterdir()}
    assert held == {
        "/dev/null",
        str(tmp_path / "output"),
        "/",
        f"{woodfrog.root}/{name}/exec.fifo",
    }
    assert woodfrog("exec", name, "echo", "hello").stdout == "hello\n"
    woodfrog("kill", name, "TERM")
    eventually(lambda: json.loads(woodfrog("state", name).stdout)["status"] == "stopped", "it ends")


def test_a_pidfd_is_handed_over(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name, tmp_path: Path
) -> None:
    bundle = make_bundle(FOREVER)
    with socket.socket(socket.AF_UNIX) as listener:
        path = str(tmp_path / "pidfd.sock")
        listener.bind(path)
        listener.listen()
        container = woodfrog.run(bundle, flags=("--pidfd-socket", path))
        connection, _ = listener.accept()
        _, (pidfd, *_), _, _ = socket.recv_fds(connection, 100, 1)
        connection.close()
        container.wait_for("up")
        woodfrog(
            "exec",
            "-d",
            "--pidfd-socket",
            path,
            container.name,
            "sleep",
            "1000",
            output=tmp_path / "out",
        )
        connection, _ = listener.accept()
        _, (second, *_), _, _ = socket.recv_fds(connection, 100, 1)
        connection.close()
    pids = json.loads(woodfrog("ps", "--format", "json", container.name).stdout)
    held = [
        int(line.split()[1])
        for descriptor in (pidfd, second)
        for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
        if line.startswith("Pid:")
    ]
    assert held[0] == container.init
    assert sorted(held) == pids
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    eventually(container.has_ended, "it dies")
    os.close(pidfd)
    os.close(second)


def test_sockets_to_accept_from_are_passed_on(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name, tmp_path: Path
) -> None:
    script = "echo $LISTEN_FDS $LISTEN_PID $$; readlink /proc/self/fd/3; cat <&4"
    bundle = make_bundle(script)
    name = new_name(bundle)
    (tmp_path / "preserved").write_text("kept\n")
    with socket.socket(socket.AF_UNIX) as listener, (tmp_path / "preserved").open() as kept:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        descriptors = (os.dup(listener.fileno()), os.dup(kept.fileno()))

        def arrange() -> None:
            os.dup2(descriptors[0], 3)
            os.dup2(descriptors[1], 4)

        program = (
            "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid());"
            "os.environ['LISTEN_FDS'] = '1'; os.execv(sys.argv[1], sys.argv[1:])"
        )
        flags = ("run", "--preserve-fds", "1", "-b", str(bundle.directory), name)
        done = subprocess.run(
            ["python3", "-c", program, *woodfrog.command(*flags)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
            preexec_fn=arrange, pass_fds=(3, 4),
        )  # fmt: skip
        for descriptor in descriptors:
            os.close(descriptor)
    first, second, third = done.stdout.splitlines()
    assert first == "1 1 1", done.stderr
    assert second.startswith("socket:")
    assert third == "kept"


def test_a_program_that_is_ready_says_so_to_the_hosts_manager(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name, tmp_path: Path
) -> None:
    say = (
        "import os, socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
        "s.connect(os.environ['NOTIFY_SOCKET']); s.send(b'STATUS=soon'); s.send(b'READY=1')"
    )
    bundle = make_bundle(f"/usr/bin/python3 -I -c {json.dumps(say)}; exec sleep 1000")
    name = new_name(bundle)
    pid_file = tmp_path / "pid"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        flags = ("run", "-d", "--pid-file", str(pid_file), "-b", str(bundle.directory), name)
        with (tmp_path / "output").open("w") as output:
            process = subprocess.Popen(
                woodfrog.command(*flags), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env=environment,
            )  # fmt: skip
            told = manager.recv(1000)
            barrier, (pipe, *_), _, _ = socket.recv_fds(manager, 1000, 1)
            # Until the manager has seen it all, the command waits.
            assert process.poll() is None
            os.close(pipe)
            assert process.wait(60) == 0
    assert told.decode().splitlines() == ["READY=1", f"MAINPID={pid_file.read_text()}"]
    assert barrier == b"BARRIER=1"


def test_debug_tells_the_steps_on_stderr_or_in_the_log(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name, tmp_path: Path
) -> None:
    bundle = make_bundle("true")
    flags = ("run", "-b", str(bundle.directory))
    told = woodfrog("--debug", *flags, new_name(bundle)).stderr
    assert 'level=debug msg="child process in init()"' in told
    log = tmp_path / "log"
    options = ("--debug", "--log", str(log), "--log-format", "json")
    assert "debug" not in woodfrog(*options, *flags, new_name(bundle)).stderr
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["level"] for line in lines} == {"debug"}
    assert "child process in init()" in [line["msg"] for line in lines]


def test_a_root_is_entered_without_pivot_root(make_bundle: Make, run: Run) -> None:
    bundle = make_bundle(
        "ls /; unshare -mrpf mount -t proc proc /proc 2>&1; grep -c '/ /host' /proc/self/mountinfo"
    )
    bundle.config["linux"]["maskedPaths"] = ["/proc/keys"]
    bundle.add_capabilities("CAP_SYS_ADMIN")
    lines = run(bundle, "--no-pivot", status=1).stdout.splitlines()
    assert "work" in lines
    assert "root" not in lines
    # A whole procfs of the host's within reach would allow one that isn't masked.
    assert any("permission denied" in line for line in lines)


def test_the_session_keyring_is_the_containers_own(woodfrog: Woodfrog, make_bundle: Make) -> None:
    # keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING)
    show = "import ctypes; print(ctypes.CDLL(None).syscall(250, 0, -3, 0))"
    bundle = make_bundle(f"python3 -I -c '{show}' > /work/serial; {FOREVER}")
    container = woodfrog.run(bundle)
    container.wait_for("up")
    serial = int((bundle.work / "serial").read_text())
    assert serial > 0
    assert int(woodfrog("exec", container.name, "python3", "-I", "-c", show).stdout) == serial
    ours = subprocess.run(["python3", "-I", "-c", show], capture_output=True, text=True).stdout
    assert int(ours) != serial


def test_without_a_process_there_is_a_container_but_nothing_to_start(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle("true")
    del bundle.config["process"]
    name = new_name(bundle)
    output = bundle.directory / "output"
    woodfrog("create", "-b", str(bundle.directory), name, output=output)
    assert "nothing to start" in woodfrog("start", name, status=1).stderr
    woodfrog("delete", name)


def test_only_a_stopped_container_is_deleted_without_force(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle(FOREVER)
    name = new_name(bundle)
    woodfrog("create", "-b", str(bundle.directory), name, output=bundle.directory / "output")
    for status in ("created", "running"):
        assert f"is not stopped: {status}" in woodfrog("delete", name, status=1).stderr
        assert json.loads(woodfrog("state", name).stdout)["status"] == status
        woodfrog("start", name, status=None)
    woodfrog("delete", "--force", name)
