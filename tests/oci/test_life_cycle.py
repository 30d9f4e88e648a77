"""From create to delete: what each state allows, and that nothing is left behind."""

import json
import os
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bundles import Bundle
from containers import CGROUPS, Done, Woodfrog, eventually, is_gone
from woodfrog.errors import WoodfrogError
from woodfrog.runtime import create, lifecycle
from woodfrog.runtime.state import Container

Make = Callable[[str], Bundle]
Name = Callable[[Bundle], str]
Run = Callable[..., Done]

FOREVER = "touch /work/up; exec sleep 1000"


def test_a_container_lives_from_create_to_delete(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle("echo hello > /work/said; touch /work/up; exec sleep 1000")
    name = new_name(bundle)
    output = bundle.directory / "output"

    woodfrog("create", "-b", str(bundle.directory), name, output=output)
    state = json.loads(woodfrog("state", name).stdout)
    assert state["status"] == "created"
    assert state["bundle"] == str(bundle.directory)
    assert not (bundle.work / "said").exists()

    woodfrog("start", name)
    eventually((bundle.work / "up").exists, "the program runs")
    assert (bundle.work / "said").read_text() == "hello\n"
    running = json.loads(woodfrog("state", name).stdout)
    assert running["status"] == "running"
    assert running["pid"] == state["pid"]
    assert "not stopped: running" in woodfrog("delete", name, status=1).stderr

    woodfrog("kill", name, "KILL")
    eventually(lambda: is_gone(state["pid"]), "the program ends")
    assert json.loads(woodfrog("state", name).stdout)["status"] == "stopped"
    assert "not running" in woodfrog("kill", name, status=1).stderr
    woodfrog("delete", name)
    assert "does not exist" in woodfrog("state", name, status=1).stderr
    assert "does not exist" in woodfrog("delete", name, status=1).stderr
    woodfrog("delete", "--force", name)


def test_run_gives_the_output_and_the_exit_status(run: Run, make_bundle: Make) -> None:
    assert run(make_bundle("echo out; exit 7"), status=7).stdout == "out\n"
    killed = make_bundle("sh -c 'kill -KILL $$'; echo $?")
    assert run(killed).stdout.startswith("137")


def test_run_forwards_signals(woodfrog: Woodfrog, make_bundle: Make, new_name: Name) -> None:
    bundle = make_bundle("trap 'exit 42' TERM; touch /work/up; while :; do sleep 0.01; done")
    name = new_name(bundle)
    with subprocess.Popen(woodfrog.command("run", "-b", str(bundle.directory), name)) as process:
        eventually((bundle.work / "up").exists, "the program runs")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 42
    assert woodfrog("list", "-q").stdout == ""


def test_an_id_is_taken_once(woodfrog: Woodfrog, make_bundle: Make) -> None:
    container = woodfrog.run(make_bundle(FOREVER))
    again = woodfrog("create", "-b", str(container.bundle.directory), container.name, status=1)
    assert "already exists" in again.stderr
    assert container.state()["status"] == "running"


@pytest.mark.parametrize("id", ["", "..", "a/b", "ü", "a b"])
def test_an_id_must_be_a_plain_name(woodfrog: Woodfrog, make_bundle: Make, id: str) -> None:
    bundle = make_bundle(FOREVER)
    bundle.save()
    assert (
        "invalid container id"
        in woodfrog("create", "-b", str(bundle.directory), id, status=1).stderr
    )


def _break_mount(bundle: Bundle) -> None:
    bundle.add_mount(
        {"destination": "/x", "type": "bind", "source": "/nowhere", "options": ["bind"]}
    )


def _break_program(bundle: Bundle) -> None:
    bundle.process["args"] = ["no-such-program"]


def _break_path(bundle: Bundle) -> None:
    bundle.process["args"] = ["/no/such/program"]


def _break_hook(bundle: Bundle) -> None:
    bundle.config["hooks"] = {"createRuntime": [{"path": "/bin/false"}]}


def _break_limit(bundle: Bundle) -> None:
    bundle.config["linux"]["resources"] = {"cpu": {"cpus": "4000"}}


def _break_namespace(bundle: Bundle) -> None:
    bundle.config["linux"]["namespaces"][1]["path"] = "/nowhere"


def _break_sysctl(bundle: Bundle) -> None:
    bundle.config["linux"]["sysctl"] = {"kernel.panic": "1"}


def _break_directory(bundle: Bundle) -> None:
    bundle.config["root"]["path"] = "nowhere"


@pytest.mark.parametrize(
    "damage, message",
    [
        (_break_mount, "/nowhere"),
        (_break_program, 'exec: "no-such-program": executable file not found in $PATH'),
        (_break_path, "stat /no/such/program: no such file or directory"),
        (_break_hook, "error running createRuntime hook #0: /bin/false failed with exit status 1"),
        (_break_limit, "cannot set cpuset.cpus to 4000"),
        (_break_namespace, "cannot open the network namespace /nowhere"),
        (_break_sysctl, "kernel.panic belongs to no namespace"),
        (_break_directory, "nowhere is not a directory"),
    ],
)
def test_a_create_that_fails_says_why_and_leaves_nothing(
    woodfrog: Woodfrog,
    make_bundle: Make,
    new_name: Name,
    damage: Callable[[Bundle], None],
    message: str,
) -> None:
    bundle = make_bundle(FOREVER)
    damage(bundle)
    name = new_name(bundle)
    done = woodfrog("create", "-b", str(bundle.directory), name, status=1)
    assert message in done.stderr
    assert not list(woodfrog.root.iterdir())
    assert not list(CGROUPS.glob(f"*/{name}"))
    assert woodfrog.leftovers() == []


def test_a_program_that_cannot_be_executed_is_an_error_of_start(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle("")
    script = bundle.work / "script"
    script.write_text("#!/no/interpreter\n")
    script.chmod(0o755)
    bundle.process["args"] = ["/work/script"]
    name = new_name(bundle)
    output = bundle.directory / "output"
    woodfrog("create", "-b", str(bundle.directory), name, output=output)
    done = woodfrog("start", name, status=1)
    assert "exec /work/script: no such file or directory (the file is there" in done.stderr
    assert "interpreter" in done.stderr


def test_pause_stops_and_resume_goes_on(woodfrog: Woodfrog, make_bundle: Make) -> None:
    container = woodfrog.run(
        make_bundle("i=0; while :; do i=$((i+1)); echo $i > /work/n; touch /work/up; done")
    )
    container.wait_for("up")
    woodfrog("pause", container.name)
    assert container.state()["status"] == "paused"
    assert (
        "cannot exec in a paused container"
        in woodfrog("exec", container.name, "true", status=255).stderr
    )
    woodfrog("pause", container.name, status=1)
    woodfrog("resume", container.name)
    assert container.state()["status"] == "running"
    assert "not paused" in woodfrog("resume", container.name, status=1).stderr


def test_a_paused_container_can_be_deleted_by_force(woodfrog: Woodfrog, make_bundle: Make) -> None:
    container = woodfrog.run(make_bundle(FOREVER))
    woodfrog("pause", container.name)
    woodfrog("delete", "--force", container.name)
    assert is_gone(container.init)


def test_list_shows_ids_tables_and_json(woodfrog: Woodfrog, make_bundle: Make) -> None:
    container = woodfrog.run(make_bundle(FOREVER))
    assert woodfrog("list", "-q").stdout.split() == [container.name]
    (shown,) = json.loads(woodfrog("list", "--format", "json").stdout)
    assert shown["pid"] == container.init
    assert shown["status"] == "running"
    header, row = woodfrog("list").stdout.splitlines()
    assert header.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert row.split()[:3] == [container.name, str(container.init), "running"]


def test_directories_of_other_runtimes_are_left_alone(woodfrog: Woodfrog) -> None:
    other = woodfrog.root / "theirs"
    other.mkdir(parents=True)
    (other / "state.json").write_text('{"id": "theirs", "init_process_pid": 1}')
    try:
        assert woodfrog("list", "-q").stdout == ""
        woodfrog("delete", "--force", "theirs")
        assert (other / "state.json").exists()
    finally:
        (other / "state.json").unlink()
        other.rmdir()


def test_ps_lists_the_processes(woodfrog: Woodfrog, make_bundle: Make) -> None:
    container = woodfrog.run(make_bundle("sleep 1000 & touch /work/up; wait"))
    container.wait_for("up")

    def pids() -> list[int]:
        found: list[int] = json.loads(woodfrog("ps", "--format", "json", container.name).stdout)
        return found

    eventually(lambda: len(pids()) == 2, "touch has ended")
    assert container.init in pids()
    assert "sleep 1000" in woodfrog("ps", container.name).stdout
    assert "sleep 1000" in woodfrog("ps", container.name, "-o", "pid,args").stdout


def test_kill_all_reaches_every_process(woodfrog: Woodfrog, make_bundle: Make) -> None:
    container = woodfrog.run(make_bundle("sleep 1000 & touch /work/up; wait"))
    container.wait_for("up")
    woodfrog("kill", "--all", container.name, "SIGKILL")
    eventually(container.has_ended, "the container ends")


def test_the_log_is_json_for_engines_and_remembered(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name, tmp_path: Path
) -> None:
    bundle = make_bundle(FOREVER)
    name = new_name(bundle)
    log = tmp_path / "log.json"
    options = ["--log", str(log), "--log-format", "json"]
    output = bundle.directory / "output"
    woodfrog(*options, "create", "-b", str(bundle.directory), name, output=output)
    woodfrog("resume", name, status=1)
    (line,) = log.read_text().splitlines()
    found = json.loads(line)
    assert found["level"] == "error"
    assert "is not paused" in found["msg"]
    assert found["time"].endswith("Z")


def test_a_killed_create_can_be_cleaned_up(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle(FOREVER)
    ready = bundle.work / "hooked"
    bundle.config["hooks"] = {
        "createRuntime": [
            {"path": "/bin/sh", "args": ["sh", "-c", f"touch {ready}; exec sleep 1000"]}
        ]
    }
    name = new_name(bundle)
    command = woodfrog.command("create", "-b", str(bundle.directory), name)
    with subprocess.Popen(command, start_new_session=True) as process:
        eventually(ready.exists, "the hook runs")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    woodfrog("delete", "--force", name)
    assert not list(CGROUPS.glob(f"*/{name}"))


def test_of_many_creates_of_one_id_one_wins(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle(FOREVER)
    name = new_name(bundle)
    command = woodfrog.command("create", "-b", str(bundle.directory), name)
    with (bundle.directory / "output").open("w") as output:
        racing = [
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            for _ in range(8)
        ]
        assert sorted(process.wait(60) for process in racing) == [0] + [1] * 7
    told = (bundle.directory / "output").read_text()
    assert told.count(f"container {name} already exists") == 7
    assert json.loads(woodfrog("state", name).stdout)["status"] == "created"
    woodfrog("start", name)
    eventually((bundle.work / "up").exists, "the program runs")


def test_many_at_once_keep_their_states_apart(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle("true")
    names = [new_name(bundle) for _ in range(16)]
    # Groups of their own, by their names.
    del bundle.config["linux"]["cgroupsPath"]
    bundle.save()
    script = (
        'set -e; $1 create -b "$2" $3; $1 state $3; $1 start $3;'
        " until $1 state $3 | grep -q stopped; do $1 list > /dev/null; done; $1 delete $3"
    )
    entry = " ".join(woodfrog.command())
    racing = [
        subprocess.Popen(
            ["sh", "-c", script, "sh", entry, str(bundle.directory), name],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in names
    ]  # fmt: skip
    for name, process in zip(names, racing, strict=True):
        told, _ = process.communicate(timeout=120)
        assert process.returncode == 0, told
        assert json.loads(told)["id"] == name
    assert woodfrog("list", "-q").stdout == ""


def test_a_first_process_that_is_gone_already_needs_no_killing(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    container = Container(str(tmp_path), "gone", {"pid": process.pid})
    lifecycle._kill_and_wait(container)


def test_an_init_that_is_killed_while_it_prepares_is_named(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle("true")
    kill = {"path": "/bin/sh", "args": ["sh", "-c", "kill -KILL $PPID"]}
    bundle.config["hooks"] = {"createContainer": [kill]}
    # From outside its pid namespace it can be killed.
    bundle.config["linux"]["namespaces"].remove({"type": "pid"})
    done = woodfrog("create", "-b", str(bundle.directory), new_name(bundle), status=1)
    assert "the container's init ended before it was ready" in done.stderr
    with pytest.raises(WoodfrogError, match="init ended before"):
        create._mounts(2**22 + 1)


def test_engines_find_the_words_they_look_for(woodfrog: Woodfrog, make_bundle: Make) -> None:
    container = woodfrog.run(make_bundle(FOREVER))
    container.wait_for("up")
    header, first = woodfrog("ps", container.name).stdout.splitlines()
    assert header.split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    columns = first.split()
    assert columns[:2] == ["root", str(container.init)]
    assert columns[5] == "?"
    listed = woodfrog("list", "--format", "json").stdout
    assert f'"id":"{container.name}","pid":{container.init},"status":"running"' in listed
    woodfrog("kill", container.name, "0")
    woodfrog("kill", container.name, "KILL")
    eventually(container.has_ended, "it ends")
    assert "container not running" in woodfrog("kill", container.name, "0", status=1).stderr
    woodfrog("kill", "--all", container.name, "0")
    assert woodfrog("ps", container.name).stdout.splitlines() == [header]


def test_without_a_pid_namespace_sigkill_reaches_those_that_outlive_the_first(
    woodfrog: Woodfrog, make_bundle: Make, tmp_path: Path
) -> None:
    bundle = make_bundle("sleep 1000 & touch /work/up; wait")
    bundle.config["linux"]["namespaces"].remove({"type": "pid"})
    container = woodfrog.run(bundle)
    container.wait_for("up")
    pids = json.loads(woodfrog("ps", "--format", "json", container.name).stdout)
    (other,) = set(pids) - {container.init}
    os.kill(container.init, signal.SIGKILL)
    eventually(container.has_ended, "the first ends")
    assert container.state()["status"] == "stopped"
    assert not is_gone(other)
    woodfrog("kill", container.name, "KILL")
    eventually(lambda: is_gone(other), "the other ends, too")
    assert "container not running" in woodfrog("kill", container.name, "KILL", status=1).stderr


@pytest.mark.parametrize("most", [10, 1000])
def test_a_state_that_cannot_be_written_whole_is_an_error(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name, most: int
) -> None:
    bundle = make_bundle("true")
    bundle.process["env"].append("LONG=" + "x" * 2000)
    limits = {resource.RLIMIT_FSIZE: most}
    command = ("create", "-b", str(bundle.directory), new_name(bundle))
    told = woodfrog(*command, status=None, limits=limits, output=bundle.directory / "output")
    assert told.status == 1
    assert woodfrog("list", "-q").stdout == ""


def test_what_a_killed_command_was_writing_goes_with_the_next_one(
    woodfrog: Woodfrog, make_bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = woodfrog.run(make_bundle(FOREVER))
    container.wait_for("up")
    child = os.fork()
    if not child:
        killed = Container.load(str(woodfrog.root), container.name)
        monkeypatch.setattr(os, "rename", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        with killed.lock():
            killed.save()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    directory = woodfrog.root / container.name
    assert (directory / "state.json.new").exists()

    woodfrog("pause", container.name)

    assert not (directory / "state.json.new").exists()
    assert container.state()["status"] == "paused"
