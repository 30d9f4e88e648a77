"""Docker's own checkpoints of containers that woodfrog runs."""

import random
import shutil
import socket
from pathlib import Path

from containers import eventually
from counting import COUNTER, LOOP, counted, goes_on
from docker_engine import IMAGE, Docker

REDIS = ("redis-server", "--save", "", "--protected-mode", "no")
READY = "Ready to accept connections"


def ask(connection: socket.socket, *words: bytes) -> bytes:
    """Give redis a command; returns the start of its answer."""
    parts = [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
    connection.sendall(b"*%d\r\n%s" % (len(words), b"".join(parts)))
    return connection.recv(100)


def test_a_counter_goes_on_at_the_next_number(docker: Docker) -> None:
    docker.run("frog", COUNTER)
    goes_on(docker, "frog")
    docker("checkpoint", "create", "--leave-running", "frog", "early")
    goes_on(docker, "frog")
    docker.carries_no_image()
    docker("checkpoint", "create", "frog", "late")
    docker.is_frozen("frog")
    assert docker("checkpoint", "ls", "frog").stdout.split()[-2:] == ["early", "late"]
    frozen_at = counted(docker, "frog")

    docker("start", "--checkpoint=late", "frog")
    goes_on(docker, "frog")
    docker("exec", "frog", "true")
    assert "while" in docker("top", "frog").stdout
    docker("kill", "frog")
    docker.is_frozen("frog")
    # The earlier one, for which numbers come once more.
    at = counted(docker, "frog")
    docker("start", "--checkpoint=early", "frog")
    eventually(lambda: len(docker.logs("frog")) > at, "it counts")
    again = int(docker.logs("frog")[at])
    assert 1 < again <= frozen_at
    docker("checkpoint", "rm", "frog", "early")


def test_a_directory_of_ones_own(docker: Docker, tmp_path: Path) -> None:
    docker.run("frog", COUNTER)
    goes_on(docker, "frog")
    docker("checkpoint", "create", f"--checkpoint-dir={tmp_path}", "frog", "one")
    docker.is_frozen("frog")
    assert (tmp_path / "one/checkpoint.img").stat().st_mode & 0o777 == 0o600
    assert "one" in docker("checkpoint", "ls", f"--checkpoint-dir={tmp_path}", "frog").stdout


def test_files_come_along_into_another_container(docker: Docker, tmp_path: Path) -> None:
    script = (
        "rm /bin/vi; i=0; exec 3> /counts; while :; do i=$((i+1)); echo $i >&3; sleep 0.05; done"
    )
    docker.run("frog", script, "--runtime=carrying")

    def counts(name: str) -> list[str]:
        return docker("exec", name, "cat", "/counts").stdout.split()

    eventually(lambda: len(counts("frog")) > 2, "it counts")
    docker("checkpoint", "create", f"--checkpoint-dir={tmp_path}", "frog", "one")
    docker.is_frozen("frog")
    docker("create", "--name=toad", IMAGE, "true")
    place = docker.directory / "data/containers" / docker.inspect("toad", ".Id") / "checkpoints"
    shutil.copytree(tmp_path, place, dirs_exist_ok=True)
    docker("rm", "frog")

    docker("start", "--checkpoint=one", "toad")
    before = len(counts("toad"))
    assert before > 2
    eventually(lambda: len(counts("toad")) > before, "it counts on")
    found = counts("toad")
    assert found == [str(number) for number in range(1, len(found) + 1)]
    docker("exec", "toad", "test", "-e", "/bin/vi", status=1)


def test_a_checkpoint_that_is_refused_says_why(docker: Docker) -> None:
    docker("run", "--detach", "--name=frog", "--publish=16379:6379", IMAGE, *REDIS)
    eventually(lambda: READY in docker("logs", "frog").stdout, "redis listens")
    with docker.connection("127.0.0.1", 16379) as connection:
        assert ask(connection, b"INCR", b"visits") == b":1\r\n"
        done = docker("checkpoint", "create", "frog", "one", status=1)
        assert "--tcp-close" in done.stderr
        assert docker.inspect("frog", ".State.Status") == "running"
        assert ask(connection, b"INCR", b"visits") == b":2\r\n"
    assert docker("checkpoint", "ls", "frog").stdout.split() == ["CHECKPOINT", "NAME"]


def test_clients_in_dockers_network_stay_connected(docker: Docker) -> None:
    docker("run", "--detach", "--name=frog", "--runtime=keeping", IMAGE, *REDIS)
    eventually(lambda: READY in docker("logs", "frog").stdout, "redis listens")
    with docker.connection(docker.inspect("frog", ".NetworkSettings.IPAddress"), 6379) as client:
        assert ask(client, b"INCR", b"visits") == b":1\r\n"
        docker("checkpoint", "create", "frog", "one")
        docker.is_frozen("frog")
        docker("start", "--checkpoint=one", "frog")
        assert ask(client, b"INCR", b"visits") == b":2\r\n"
        # Also into another container, as long as that gets the same address.
        place = docker("woodfrog", "checkpoint", "frog").stdout.strip()
        docker("woodfrog", "restore", "--from", place, "--name=frog2", IMAGE)
        assert ask(client, b"INCR", b"visits") == b":3\r\n"


def test_redis_with_clients_and_100_mb(docker: Docker, chance: random.Random) -> None:
    flags = ("--runtime=closing", "--publish=16379:6379", "--memory=400m")
    docker("run", "--detach", "--name=frog", *flags, IMAGE, *REDIS)
    eventually(lambda: READY in docker("logs", "frog").stdout, "redis listens")
    with docker.connection("127.0.0.1", 16379) as connection:
        for number in range(100):
            assert ask(connection, b"SET", b"%d" % number, chance.randbytes(1 << 20)) == b"+OK\r\n"
        assert ask(connection, b"INCR", b"visits") == b":1\r\n"
        docker("checkpoint", "create", "frog", "one")
        docker.is_frozen("frog")
        docker("start", "--checkpoint=one", "frog")
        # The connection is given up, as --tcp-close says; what was stored is there.
        assert connection.recv(1) == b""
    with docker.connection("127.0.0.1", 16379) as connection:
        assert ask(connection, b"INCR", b"visits") == b":2\r\n"
        assert ask(connection, b"DBSIZE") == b":101\r\n"
        assert ask(connection, b"STRLEN", b"99") == b":1048576\r\n"


def test_a_shell_in_a_terminal(docker: Docker) -> None:
    with docker.terminal("run", "-it", "--name=frog", IMAGE, "sh") as terminal:
        terminal.write("word=ribbit; sleep 1000 &\recho RE''ADY\r")
        terminal.read_until("READY")
        terminal.write("cat\r")
        eventually(lambda: "cat" in docker("top", "frog", "-o", "pid,comm").stdout, "cat runs")
        docker("checkpoint", "create", "frog", "one")
        terminal.status()
    docker.is_frozen("frog")
    with docker.terminal("start", "-ai", "--checkpoint=one", "frog") as terminal:
        terminal.write("croak\r")
        terminal.read_until("croak\r\ncroak")  # its echo, and cat's
        terminal.write("\x04echo $word; jobs; kill %1; wait; echo wai''ted; tty\r")
        told = terminal.read_until("/dev/pts/0")
        assert "ribbit\r\n" in told
        assert "sleep 1000" in told
        assert "waited" in told
        # What was typed before the checkpoint is in the shell's memory.
        terminal.write("\x1b[A\x1b[A\x1b[A\r")
        terminal.read_until("READY")
        terminal.write("exit 6\r")
        assert terminal.status() == 6


def test_a_log_that_was_opened_by_its_name_goes_on(docker: Docker) -> None:
    # As web servers do it that log to /dev/stdout.
    says = "echo out $i >&3; echo err $i >&4; echo own $i"
    docker.run("frog", f"exec 3> /dev/stdout 4>&2 2> /dev/null; i=0; {LOOP.format(says)}")
    eventually(lambda: "own 3" in docker("logs", "frog").stdout, "it counts")
    docker("checkpoint", "create", "frog", "one")
    docker.is_frozen("frog")
    at = len(docker.logs("frog")) // 2
    docker("start", "--checkpoint=one", "frog")
    last = f"own {at + 3}"
    eventually(lambda: last in docker("logs", "frog").stdout, "it goes on")
    told = docker("logs", "frog")
    for name, text in (("out", told.stdout), ("own", told.stdout), ("err", told.stderr)):
        found = [line.split()[1] for line in text.splitlines() if line.startswith(name)]
        assert found[: at + 3] == [str(number) for number in range(1, at + 4)]


def test_health_goes_on(docker: Docker) -> None:
    docker.run("frog", COUNTER, "--health-cmd=echo well", "--health-interval=100ms")
    health = ".State.Health.Status"
    eventually(lambda: docker.inspect("frog", health) == "healthy", "it is healthy")
    docker("checkpoint", "create", "frog", "one")
    docker.is_frozen("frog")
    docker("start", "--checkpoint=one", "frog")
    eventually(lambda: docker.inspect("frog", health) == "healthy", "it is healthy again")
    goes_on(docker, "frog")


def test_a_network_in_a_network(docker: Docker) -> None:
    docker("network", "create", "pond")
    docker.run("frog", COUNTER, "--network=pond", "--cap-add=NET_ADMIN")
    goes_on(docker, "frog")
    for command in (
        "link add br0 type bridge",
        "link set br0 up",
        "address add 10.99.0.1/24 dev br0",
        "address add 10.98.0.1/32 dev eth0",
        "route add 10.97.0.0/16 dev br0",
    ):
        docker("exec", "frog", "ip", *command.split())

    def shown(*what: str) -> list[str]:
        return docker("exec", "frog", "ip", *what).stdout.replace("linkdown", "").splitlines()

    asked = ("-4", "-o", "address", "show", "dev", "br0"), ("route",)
    before = [shown(*what) for what in asked]
    docker("checkpoint", "create", "frog", "one")
    docker.is_frozen("frog")
    docker("start", "--checkpoint=one", "frog")

    goes_on(docker, "frog")
    assert [shown(*what) for what in asked] == before
    assert "10.98.0.1/32" in docker("exec", "frog", "ip", "address").stdout
    docker("rm", "--force", "frog")
    docker("network", "rm", "pond")
