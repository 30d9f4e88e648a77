"""Podman with woodfrog as its runtime: containers, checkpoints, archives and pods."""

import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers import REPOSITORY, eventually
from needs import needs
from podman_engine import IMAGE, Podman
from terminals import in_a_terminal, set_size
from woodfrog.image.container_file import Reader

pytestmark = needs("root", "command podman", "command busybox", "command catatonit")

# Counts in memory; what it says is in the container's log.
COUNTER = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, subreaper: None) -> Iterator[Podman]:
    """Podman with an image; at the end nothing may be left of it."""
    engine = Podman(tmp_path_factory.mktemp("podman"))
    try:
        engine.prepare()
        yield engine
    finally:
        leftovers = engine.close()
    assert leftovers == []


@pytest.fixture
def podman(engine: Podman) -> Iterator[Podman]:
    """Podman without any containers; afterwards there is none again."""
    yield engine
    engine.remove_all()


def count(podman: Podman, name: str, first: int = 1) -> int:
    """Return how far a counter's log has come: no number may be missing there, or twice."""
    numbers = [int(line) for line in podman.logs(name)]
    assert numbers == list(range(first, first + len(numbers)))
    return first - 1 + len(numbers)


def counts_on(podman: Podman, name: str, after: int, first: int = 1) -> None:
    """Wait until a counter's log has gone on after a number."""
    eventually(lambda: count(podman, name, first) > after + 1, f"{name} counts on")


def start_counter(podman: Podman, name: str, *flags: str) -> None:
    """Start a counter, and wait until it has counted a bit."""
    podman.run(name, COUNTER, *flags)
    counts_on(podman, name, after=1)


def status(podman: Podman, name: str) -> str:
    """Return what podman calls a container's state."""
    return podman("inspect", "--format", "{{.State.Status}}", name).stdout.strip()


def test_the_life_of_a_container(podman: Podman) -> None:
    podman.run("frog", "trap 'exit 3' TERM; echo hello; while :; do sleep 0.05; done")
    eventually(lambda: podman.logs("frog") == ["hello"], "its first word")
    assert podman("exec", "frog", "sh", "-c", "echo out; echo err >&2; exit 7", status=7).stdout
    assert "trap" in podman("top", "frog").stdout
    assert podman("stats", "--no-stream", "--format", "{{.PIDs}}", "frog").stdout.strip() in "12"
    podman("pause", "frog")
    assert status(podman, "frog") == "paused"
    podman("unpause", "frog")
    podman("update", "--memory=64m", "frog")
    limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max"
    assert podman("exec", "frog", "sh", "-c", limit).stdout.strip() == str(64 << 20)
    podman("stop", "--time=50", "frog")
    assert podman("wait", "frog").stdout.strip() == "3"
    podman("start", "frog")
    podman("kill", "--signal=KILL", "frog")
    assert podman("wait", "frog").stdout.strip() == "137"
    podman("rm", "frog")
    assert podman("ps", "--all", "--quiet").stdout == ""


def test_what_run_can_be_told(podman: Podman, tmp_path: Path) -> None:
    flags = ["--user=frog", "--read-only", "--tmpfs=/mnt/scratch:size=1m", "--hostname=pond"]
    flags += [f"--volume={tmp_path}:/mnt/volume", "--memory=64m", "--pids-limit=50", "--init"]
    flags += ["--cap-drop=all", "--device=/dev/null:/dev/frog", "--rm", "-i"]
    script = """id -un; hostname; cat; head -c 16 /proc/1/cmdline; echo
        touch /new 2> /dev/null || echo read-only; touch /tmp/new && echo tmp
        df -k /mnt/scratch | tail -1 | cut -c1-30
        grep CapBnd /proc/self/status; [ -c /dev/frog ] && echo device
        cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2> /dev/null
        cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2> /dev/null
        echo written > /mnt/volume/file; exit 4"""
    tmp_path.chmod(0o777)
    done = podman("run", *flags, IMAGE, "sh", "-c", script, given="given\n", status=4)
    lines = done.stdout.splitlines()
    assert len(lines) == 11, lines
    user, host, given, init, read_only, tmp, scratch, bounding, device, memory, pids = lines
    assert [user, host, given] == ["frog", "pond", "given"]
    assert [read_only, tmp, device] == ["read-only", "tmp", "device"]
    assert init == "/run/podman-init"
    assert scratch.split() == ["tmpfs", "1024"]
    assert int(bounding.split()[1], 16) == 0
    assert [memory, pids] == [str(64 << 20), "50"]
    assert (tmp_path / "file").read_text() == "written\n"


def test_podman_understands_what_install_writes(podman: Podman, tmp_path: Path) -> None:
    config = tmp_path / "woodfrog.conf"
    install = ("install", "podman", "--default", "--yes", f"--config={config}", "--name=frog")
    subprocess.run([f"{REPOSITORY}/woodfrog", *install], env=podman.environment, check=True)
    networks = f"--network-config-dir={tmp_path}"
    told = podman(networks, "info", "--format={{json .Host.OCIRuntime}}", config=config)
    runtime = json.loads(told.stdout)
    assert (runtime["name"], runtime["path"]) == ("frog", f"{REPOSITORY}/woodfrog")
    assert "woodfrog version" in runtime["version"]


def test_a_command_that_is_not_there(podman: Podman) -> None:
    done = podman("run", "--rm", IMAGE, "nosuch", status=127)
    assert done.stderr.startswith('Error: woodfrog: exec: "nosuch": executable file not found')


def test_terminals_of_run_and_exec(podman: Podman) -> None:
    # Podman tells the size when it has attached. A trapped signal makes read fail: read again.
    shell = """until stty size | grep '30 90'; do :; done; trap 'stty size' WINCH; tty
        while :; do read line || continue; [ $line = end ] && exit 6; echo got $line; done"""
    command = podman.command("run", "-it", "--name", "frog", IMAGE, "sh", "-c", shell)
    with in_a_terminal(command, podman.environment, rows=30, columns=90) as terminal:
        assert "30 90" in terminal.read_until("/dev/pts/0")
        other = podman.command("exec", "-it", "frog", "sh", "-c", "tty; read line; echo $line")
        with in_a_terminal(other, podman.environment) as second:
            second.read_until("/dev/pts/1")
            second.write("hop\r")
            second.read_until("hop\r\nhop")
            assert second.status() == 0
        set_size(terminal.master, 40, 100)
        terminal.read_until("40 100")
        terminal.write("word\r")
        terminal.read_until("got word")
        terminal.write("end\r")
        assert terminal.status() == 6


def test_a_shell_in_a_terminal_goes_on(podman: Podman) -> None:
    shell = "set -m; sleep 1000 & while read -r line; do eval $line; done"
    command = podman.command("run", "-it", "--name", "frog", IMAGE, "sh", "-c", shell)
    with in_a_terminal(command, podman.environment, rows=30, columns=90) as terminal:
        terminal.write("X=42; echo X is $X\r")
        terminal.read_until("X is 42")
        podman("container", "checkpoint", "frog")
        terminal.status()
    podman("container", "restore", "frog")
    attached = podman.command("attach", "frog")
    with in_a_terminal(attached, podman.environment, rows=20, columns=70) as terminal:
        terminal.write("jobs; until stty size | grep '20 70'; do :; done; exit $X\r")
        assert "Running" in terminal.read_until("20 70\r\n")
        terminal.status()
    assert podman("wait", "frog").stdout.strip() == "42"


def test_what_is_around_comes_along(podman: Podman, tmp_path: Path) -> None:
    script = "echo shm > /dev/shm/file; echo tmpfs > /scratch/file; exec 3< /dev/shm/file;"
    script += " exec 4< /scratch/file 5>> /data/file; echo volume >&5;" + COUNTER
    flags = ["--tmpfs=/scratch", "--volume=pond:/data", "--init", "--read-only", "--memory=64m"]
    flags += ["--user=frog"]
    podman.run("frog", script, *flags)
    counts_on(podman, "frog", after=1)
    podman("exec", "--detach", "frog", "sleep", "1000")
    archive = str(tmp_path / "archive")
    podman("container", "checkpoint", f"--export={archive}", "frog")
    before = count(podman, "frog")
    podman("rm", "frog")
    podman("volume", "rm", "pond")
    podman("container", "restore", f"--import={archive}")
    counts_on(podman, "frog", before)
    there = podman("exec", "frog", "cat", "/dev/shm/file", "/scratch/file", "/data/file").stdout
    assert there.split() == ["shm", "tmpfs", "volume"]
    assert "sleep 1000" in podman("exec", "frog", "ps", "-o", "args").stdout


def test_a_checkpoint_and_a_restore_in_place(podman: Podman) -> None:
    start_counter(podman, "frog")
    stats = json.loads(podman("container", "checkpoint", "--print-stats", "frog").stdout)
    (figures,) = stats["container_statistics"]
    assert figures["criu_statistics"]["pages_written"] > 0
    assert figures["criu_statistics"]["frozen_time"] > 0
    assert status(podman, "frog") == "exited"
    before = count(podman, "frog")
    stats = json.loads(podman("container", "restore", "--print-stats", "frog").stdout)
    (figures,) = stats["container_statistics"]
    assert figures["criu_statistics"]["pages_restored"] > 0
    counts_on(podman, "frog", before)
    # The files that it left for podman are gone, and a second time works as well.
    podman("--runtime-flag=compression=zstd", "container", "checkpoint", "--keep", "frog")
    image = Path(podman("inspect", "--format={{.State.CheckpointPath}}", "frog").stdout.strip())
    assert sorted(path.name for path in image.iterdir()) == ["checkpoint.img", "inventory.img"]
    with Reader(str(image)) as reader:
        assert reader.header.compression == "zstd"
    before = count(podman, "frog")
    podman("container", "restore", "--keep", "frog")
    counts_on(podman, "frog", before)


def test_a_container_that_is_left_running(podman: Podman, tmp_path: Path) -> None:
    # Podman has no flag for it: the annotation is how one asks.
    start_counter(podman, "frog", "--annotation=org.woodfrog.compression=zstd")
    archive = str(tmp_path / "archive")
    podman("container", "checkpoint", "-R", "--compress=gzip", f"--export={archive}", "frog")
    with tarfile.open(archive) as packed:
        file = packed.extractfile("checkpoint/checkpoint.img")
        assert file is not None
        (tmp_path / "checkpoint.img").write_bytes(file.read())
    with Reader(str(tmp_path)) as image:
        assert image.header.compression == "zstd"
    assert status(podman, "frog") == "running"
    before = count(podman, "frog")
    counts_on(podman, "frog", before)
    podman("container", "restore", f"--import={archive}", "--name=second")
    podman("container", "restore", f"--import={archive}", "--name=third")
    for name in ("second", "third"):
        # Podman packs the log when the container runs on already: some lines come once more.
        seen = {int(line) for line in podman.logs(name)}
        eventually(lambda name=name, seen=seen: str(max(seen) + 2) in podman.logs(name), name)
        numbers = {int(line) for line in podman.logs(name)}
        assert numbers == set(range(1, max(numbers) + 1))
    counts_on(podman, "frog", count(podman, "frog"))


def test_an_archive_brings_the_changed_files(podman: Podman, tmp_path: Path) -> None:
    script = "exec 3> /srv/log; echo one >&3; trap 'cat /srv/log; echo two >&3' USR1; rm /bin/vi;"
    podman.run("frog", script + "while :; do sleep 0.05; done")
    archive = str(tmp_path / "archive")
    eventually(
        lambda: podman("exec", "frog", "ls", "/bin/vi", status=None).status, "the file is removed"
    )
    flags = ("--file-locks", "--tcp-established")
    podman("container", "checkpoint", *flags, "--compress=none", f"--export={archive}", "frog")
    podman("rm", "frog")
    podman("container", "restore", *flags, f"--import={archive}")
    podman("kill", "--signal=USR1", "frog")
    eventually(lambda: podman.logs("frog") == ["one"], "the log's first line")
    eventually(
        lambda: podman("exec", "frog", "cat", "/srv/log").stdout == "one\ntwo\n", "the second"
    )
    podman("exec", "frog", "ls", "/bin/vi", status=1)


def test_a_checkpoint_builds_on_a_pre_checkpoint(podman: Podman, tmp_path: Path) -> None:
    start_counter(podman, "frog")
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    podman(
        "container",
        "checkpoint",
        "--pre-checkpoint",
        "--compress=none",
        f"--export={first}",
        "frog",
    )
    counts_on(podman, "frog", count(podman, "frog"))
    full = ("--with-previous", "--ignore-rootfs", "--compress=none", f"--export={second}")
    podman("container", "checkpoint", *full, "frog")
    before = count(podman, "frog")
    podman("rm", "frog")
    images = []
    for archive, place in ((first, "pre-checkpoint"), (second, "checkpoint")):
        with tarfile.open(archive) as tar:
            tar.extract(f"{place}/checkpoint.img", tmp_path, filter="data")
        images.append(tmp_path / place)
    with Reader(str(images[0])) as previous, Reader(str(images[1])) as last:
        assert last.header.parent == previous.digest
        assert last.page_bytes < previous.page_bytes
    both = (f"--import={second}", f"--import-previous={first}")
    podman("container", "restore", "--ignore-rootfs", "--ignore-static-ip", *both)
    counts_on(podman, "frog", before)


def test_a_checkpoint_as_an_image(podman: Podman) -> None:
    start_counter(podman, "frog")
    podman("container", "checkpoint", "--create-image=localhost/frozen", "frog")
    before = count(podman, "frog")
    podman("rm", "frog")
    podman("container", "restore", "--name=thawed", "localhost/frozen")
    # An image has no log in it.
    counts_on(podman, "thawed", before, first=before + 1)
    podman("rm", "--force", "--time=0", "thawed")
    podman("image", "rm", "localhost/frozen")


def test_a_refused_checkpoint_leaves_the_container_running(podman: Podman) -> None:
    start_counter(podman, "frog", "--pid=host")
    done = podman("container", "checkpoint", "frog", status=125)
    assert "host's pid namespace" in done.stderr
    assert status(podman, "frog") == "running"
    counts_on(podman, "frog", count(podman, "frog"))


@needs("command iptables")
def test_a_published_port_moves_to_another(podman: Podman, tmp_path: Path) -> None:
    flags = ("--network=podman", "--publish=18080:80")
    podman.run("frog", "exec httpd -f -p 80 -h /etc", *flags)
    page = ("busybox", "wget", "-q", "-O-")
    assert "frog:x" in podman.inside(*page, "http://127.0.0.1:18080/passwd")
    archive = str(tmp_path / "archive")
    podman("container", "checkpoint", f"--export={archive}", "frog")
    podman("rm", "frog")
    for name, port in (("first", 18081), ("second", 18082)):
        restore = ("container", "restore", f"--import={archive}", f"--name={name}")
        podman(*restore, f"--publish={port}:80")
    for port in (18081, 18082):
        assert "frog:x" in podman.inside(*page, f"http://127.0.0.1:{port}/passwd")


@needs("command iptables")
def test_a_connection_goes_on(podman: Podman) -> None:
    podman.run("frog", "exec nc -l -p 80", "--network=podman", "--init", "--interactive")
    where = podman("inspect", "--format={{.NetworkSettings.IPAddress}}", "frog").stdout.strip()
    kept = ("--tcp-established", "frog")
    with subprocess.Popen(
        podman.beside("busybox", "nc", where, "80"), stdin=subprocess.PIPE
    ) as other:
        assert other.stdin is not None
        other.stdin.write(b"one\n")
        other.stdin.flush()
        eventually(lambda: podman.logs("frog") == ["one"], "the first line")
        podman("container", "checkpoint", *kept)
        podman("container", "restore", *kept)
        other.stdin.write(b"two\n")
        other.stdin.flush()
        eventually(lambda: podman.logs("frog") == ["one", "two"], "the second line")
        other.kill()


def test_a_pod(podman: Podman, tmp_path: Path) -> None:
    pod = podman("pod", "create", "--share=ipc,net,uts", "--name=pond").stdout.strip()
    start_counter(podman, "frog", "--pod=pond")
    podman.run("toad", "sleep 1000", "--pod=pond")
    archive = str(tmp_path / "archive")
    podman("container", "checkpoint", f"--export={archive}", "frog")
    before = count(podman, "frog")
    podman("rm", "frog")
    podman("container", "restore", f"--import={archive}", f"--pod={pod}")
    counts_on(podman, "frog", before)
    states = podman("pod", "inspect", "pond", "--format={{range .Containers}}{{.State}} {{end}}")
    assert states.stdout.split() == ["running"] * 3


def test_a_container_whose_root_is_nobody_outside(podman: Podman) -> None:
    maps = ("--uidmap=0:100000:65536", "--gidmap=0:200000:65536")
    start_counter(podman, "frog", *maps)
    whose = "cat /proc/self/uid_map; id -u; stat -c %u:%g / /dev/null; echo > /dev/null; touch /x"
    words = podman("exec", "frog", "sh", "-c", whose).stdout.split()
    assert words == ["0", "100000", "65536", "0", "0:0", "65534:65534"]
    podman("container", "checkpoint", "frog")
    before = count(podman, "frog")
    podman("container", "restore", "frog")
    counts_on(podman, "frog", after=before)
    assert podman("exec", "--user", "7", "frog", "id", "-u").stdout == "7\n"
