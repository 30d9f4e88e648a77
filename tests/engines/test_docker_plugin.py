"""`docker woodfrog`: checkpoints into new containers."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from containers import eventually
from counting import COUNTER, counted, goes_on
from docker_engine import IMAGE, Docker


def numbers(docker: Docker, name: str) -> list[int]:
    """Return what a counter has written into its log, which has no gap."""
    found = [int(line) for line in docker.logs(name)]
    assert found == list(range(found[0], found[0] + len(found))) if found else True
    return found


def counts_on(docker: Docker, name: str, after: int) -> None:
    """Wait until a new counter has begun at the number after another's last."""
    eventually(lambda: len(numbers(docker, name)) > 1, f"{name} counts")
    assert numbers(docker, name)[0] == after + 1


def nothing_left(docker: Docker) -> None:
    """Check that no ticket is left of any restore."""
    assert os.listdir(f"/proc/{docker.place.init}/root/run/woodfrog-handover") == []
    assert list(docker.directory.glob("data/containers/*/checkpoints/woodfrog-*")) == []


def test_a_new_container_goes_on(docker: Docker) -> None:
    docker.run("web", f"echo ribbit > /changed; rm /etc/group; {COUNTER}", "--env=A=b")
    goes_on(docker, "web")
    docker("checkpoint", "create", "web", "one")
    docker.is_frozen("web")
    last = counted(docker, "web")
    # Its own checkpoint, into the container that it was made of.
    done = docker("woodfrog", "start", "--checkpoint=one", "web")
    assert done.stdout == "web\n"
    goes_on(docker, "web")
    # After a plain create, from another container's.
    docker("create", "--name=web2", "--publish=18080:80", IMAGE, "sh")
    docker("woodfrog", "start", "--checkpoint=web:one", "web2")
    counts_on(docker, "web2", last)
    assert docker("exec", "web2", "cat", "/changed").stdout == "ribbit\n"
    assert docker("exec", "web2", "ls", "/etc/group", status=1).stdout == ""
    # Both in one, when the first is gone.
    docker("woodfrog", "checkpoint", "web2")
    at = numbers(docker, "web2")[-1]
    listed = docker("woodfrog", "ls").stdout.splitlines()
    assert [line.split()[0].partition(":")[0] for line in listed[1:]] == ["web2", "web"]
    place = listed[1].split()[0]
    done = docker("woodfrog", "restore", "--from", place, "--name=web3", "--memory=100m", IMAGE)
    counts_on(docker, "web3", at)
    assert docker.inspect("web3", ".Id") == done.stdout.strip()
    assert docker.inspect("web3", ".HostConfig.Memory") == str(100 << 20)
    assert docker("exec", "web3", "cat", "/changed").stdout == "ribbit\n"
    nothing_left(docker)


def test_a_directory(docker: Docker, tmp_path: Path) -> None:
    script = f"echo ribbit > /changed; rm /etc/group; {COUNTER}"
    docker.run("web", script, "--rm", "--init")
    goes_on(docker, "web")
    done = docker("woodfrog", "checkpoint", "web", status=1)
    assert "name a directory" in done.stderr
    first, second = tmp_path / "first", tmp_path / "second"
    flags = ("--leave-running", "--sync=none", "--with-rootfs=false")
    done = docker("woodfrog", "checkpoint", *flags, "web", str(first))
    assert done.stdout == f"{first}\n"
    early = goes_on(docker, "web")
    assert docker.inspect("web", ".State.Status") == "running"
    docker("woodfrog", "checkpoint", "web", str(second))
    eventually(lambda: not docker("ps", "--all", "--quiet").stdout, "web is removed")

    docker("woodfrog", "restore", "--from", str(second), "--name=web2", IMAGE)
    eventually(lambda: numbers(docker, "web2"), "it counts")
    assert numbers(docker, "web2")[0] > early
    assert docker("exec", "web2", "cat", "/changed").stdout == "ribbit\n"
    docker("exec", "web2", "cat", "/etc/group", status=1)
    assert docker.inspect("web2", ".HostConfig.Init") == "true"
    assert json.loads(docker.inspect("web2", "json .Args")) == ["-c", script]
    docker("create", "--name=web3", "--init", IMAGE, "sh")
    start = ("woodfrog", "start", "--checkpoint-dir", str(tmp_path), "--checkpoint=first", "web3")
    assert "not kept: the files" in docker(*start).stderr
    docker("exec", "web3", "ls", "/changed", status=1)
    eventually(lambda: numbers(docker, "web3"), "it counts")
    assert numbers(docker, "web3")[0] <= early
    nothing_left(docker)


def test_a_restart_policy_does_not_start_it_afresh(docker: Docker) -> None:
    docker.run("web", COUNTER, "--restart=always")
    goes_on(docker, "web")
    docker("woodfrog", "checkpoint", "web")
    last = counted(docker, "web")
    assert docker.inspect("web", ".State.Status") == "exited"
    assert docker.inspect("web", ".RestartCount") == "0"
    place = docker("woodfrog", "ls", "web").stdout.splitlines()[1].split()[0]
    docker("woodfrog", "start", "--checkpoint", place, "web")
    goes_on(docker, "web")
    assert counted(docker, "web") > last


def test_a_checkpoint_that_fails_leaves_it_as_it_was(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.img").touch()
    for flags, status in (((), "running"), (("--restart=always",), "running"), ((), "paused")):
        docker.run("web", COUNTER, *flags)
        goes_on(docker, "web")
        if status == "paused":
            docker("pause", "web")
        done = docker("woodfrog", "checkpoint", "web", str(tmp_path), status=1)
        assert "already holds a checkpoint" in done.stderr
        assert f"the container is {status} as before" in done.stderr
        assert docker.inspect("web", ".State.Status") == status
        docker("rm", "--force", "web")


def test_a_terminal_comes_along(docker: Docker) -> None:
    with docker.terminal("run", "-it", "--name=web", IMAGE, "sh") as terminal:
        terminal.write("word=ribbit; echo RE''ADY\r")
        terminal.read_until("READY")
        docker("woodfrog", "checkpoint", "web")
        assert terminal.status() == 137
    place = docker("woodfrog", "ls", "web").stdout.splitlines()[1].split()[0]
    docker("create", "--name=web2", IMAGE, "sh")
    refused = docker("woodfrog", "start", "--checkpoint", place, "web2", status=1)
    assert "--tty" in refused.stderr
    restore = ("woodfrog", "restore", "--from", place, "--attach=STDOUT", "--name=web3", IMAGE)
    with docker.terminal(*restore) as terminal:
        terminal.write("echo $word; tty\r")
        assert "ribbit\r\n" in terminal.read_until("/dev/pts/0")
        nothing_left(docker)
        terminal.write("exit 6\r")
        assert terminal.status() == 6
    with docker.terminal("woodfrog", "start", "-ai", "--checkpoint", place, "web") as terminal:
        terminal.write("echo $word; exit 7\r")
        terminal.read_until("ribbit\r\n")
        assert terminal.status() == 7
    nothing_left(docker)


def test_what_cannot_be_kept_is_said(docker: Docker, tmp_path: Path) -> None:
    script = f"echo ribbit > /changed; exec 9> /data/open; {COUNTER}"
    docker.run("web", script, f"--volume={tmp_path}:/data")
    goes_on(docker, "web")
    # (The other one, `docker woodfrog checkpoint`, takes changed files along.)
    docker("checkpoint", "create", f"--checkpoint-dir={tmp_path}", "web", "image")
    docker.is_frozen("web")
    restore = ("woodfrog", "restore", "--from", str(tmp_path / "image"))
    before = docker("ps", "--all", "--quiet").stdout
    for flags in ((), ("--attach=STDOUT",)):
        done = docker(*restore, "--name=web2", *flags, IMAGE, status=1)
        assert "the frozen container had a volume at /data" in done.stderr
        assert "/data is missing" in done.stderr
        assert docker("ps", "--all", "--quiet").stdout == before
    volume = f"--volume={tmp_path}:/data"
    done = docker(*restore, volume, "--name=web2", "--files-from=nobody", IMAGE, status=1)
    assert "No such container: nobody" in done.stderr
    done = docker(*restore, volume, "--name=web2", IMAGE)
    assert "not kept: the files that the container had changed" in done.stderr
    docker("exec", "web2", "ls", "/changed", status=1)
    done = docker(*restore, volume, "--name=web3", "--files-from=web", IMAGE)
    assert docker("exec", "web3", "cat", "/changed").stdout == "ribbit\n"
    done = docker("woodfrog", "checkpoint", "web2", str(tmp_path / "image"), status=1)
    assert "already holds a checkpoint" in done.stderr
    assert docker.inspect("web2", ".State.Status") == "running"
    nothing_left(docker)


def test_anonymous_volumes_are_anothers(docker: Docker) -> None:
    docker.run("web", f"echo ribbit > /data/word; {COUNTER}", "--volume=/data")
    goes_on(docker, "web")
    place = docker("woodfrog", "checkpoint", "web").stdout.strip()
    restore = ("woodfrog", "restore", "--from", place)
    done = docker(*restore, "--name=web2", "--volume=/data", IMAGE)
    assert "/data is another volume than the frozen container's" in done.stderr
    docker("exec", "web2", "ls", "/data/word", status=1)
    done = docker(*restore, "--name=web3", "--volumes-from=web", IMAGE)
    assert done.stderr == ""
    assert docker("exec", "web3", "cat", "/data/word").stdout == "ribbit\n"


def test_a_server_is_at_the_new_address(docker: Docker) -> None:
    redis = "exec redis-server --save '' --protected-mode no --bind $(hostname -i) 127.0.0.1"
    docker.run("web", redis, "--publish=16379:6379")
    eventually(lambda: "Ready to accept" in docker("logs", "web").stdout, "redis listens")
    with docker.connection("127.0.0.1", 16379) as connection:
        connection.sendall(b"INCR visits\r\n")
        assert connection.recv(100) == b":1\r\n"
        told = docker("woodfrog", "check", "web", status=1).stdout
        assert "is a TCP connection to" in told
        assert "can be saved" in docker("woodfrog", "check", "--tcp-close", "web").stdout
    docker("woodfrog", "checkpoint", "--tcp-close", "web")
    place = docker("woodfrog", "ls", "web").stdout.splitlines()[1].split()[0]
    docker.run("first", "sleep 1000", "--network=bridge")  # which gets the address
    published = "--publish=16380:6379"
    done = docker("woodfrog", "restore", "--from", place, "--name=web2", published, IMAGE)
    old, new = (docker.inspect(one, ".NetworkSettings.IPAddress") for one in ("first", "web2"))
    assert f"what was at {old} is at {new} now" in done.stderr
    with docker.connection("127.0.0.1", 16380) as connection:
        connection.sendall(b"INCR visits\r\n")
        assert connection.recv(100) == b":2\r\n"


@pytest.mark.parametrize(
    "words, message",
    [
        (("start", "web"), "--checkpoint is missing"),
        (("start", "--checkpoint=one", "nobody"), "No such container: nobody"),
        (("start", "--checkpoint=one", "web"), "has no checkpoint one"),
        (("start", "--checkpoint=../x", "web"), "has no checkpoint ../x"),
        (("restore", "--name=x", "box"), "the checkpoint or the image is missing"),
        (("restore", "--from=web", "box"), "neither CONTAINER:NAME nor a directory"),
        (("checkpoint", "web"), "cannot checkpoint container web, which is created"),
        (("checkpoint", "runc"), "docker's runtime runc is not woodfrog"),
        (("thaw",), "unknown command thaw"),
    ],
)
def test_mistakes_are_explained(docker: Docker, words: tuple[str, ...], message: str) -> None:
    docker("create", "--name=web", IMAGE, "sh")
    if "runc" in words:
        docker("run", "--detach", "--runtime=runc", "--name=runc", IMAGE, "sleep", "1000")
    assert message in docker("woodfrog", *words, status=1).stderr


def test_the_client_knows_the_command(docker: Docker) -> None:
    plugins = docker("info", "--format", "{{json .ClientInfo.Plugins}}").stdout
    ours = [plugin for plugin in json.loads(plugins) if plugin["Name"] == "woodfrog"]
    assert ours[0]["ShortDescription"] == "Freeze containers and thaw them into new ones"
    assert "docker woodfrog restore" in docker("woodfrog", "restore", "--help").stdout
    assert "checkpoint" in docker("woodfrog", "--help").stdout


def test_a_checkpoint_that_is_ended_leaves_it_running(docker: Docker, tmp_path: Path) -> None:
    # With a restart policy the plugin pauses it; random bytes take their time to be compressed.
    fill = "dd if=/dev/urandom of=/dev/shm/x bs=1M count=60 2> /dev/null"
    docker.run("web", f"{fill}; {COUNTER}", "--restart=always")
    goes_on(docker, "web")
    image = tmp_path / "image"
    command = docker.command("woodfrog", "checkpoint", "--compression=zstd", "web", str(image))
    with subprocess.Popen(command, env=docker.environment, start_new_session=True) as plugin:
        eventually(image.exists, "the image is begun")
        os.killpg(plugin.pid, signal.SIGTERM)
    eventually(lambda: docker.inspect("web", ".State.Status") == "running", "web runs")
    goes_on(docker, "web")
    assert not image.exists()
