"""Containerd with woodfrog as its runtime: by its client ctr, and by CRI as Kubernetes calls it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from containerd_engine import IMAGE, Containerd
from containers import eventually
from cri_client import CriError, Message, decode
from needs import needs

pytestmark = needs("root", "command containerd", "command busybox", "command /usr/lib/cni/bridge")

# Counts in memory, and writes down each number in a file of the container's own.
COUNTER = "i=0; while :; do i=$((i+1)); echo $i >> /srv/counted; sleep 0.05; done"
RUNNING, EXITED = 1, 2  # CRI's states
CONTAINER, NODE = 1, 2  # CRI's namespace modes


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """The daemon with images; at the end nothing may be left of it."""
    daemon = Containerd(tmp_path_factory.mktemp("containerd"))
    leftovers = ["it was not closed"]
    try:
        daemon.prepare()
        yield daemon
    finally:
        leftovers = daemon.close()
    assert leftovers == []


@pytest.fixture
def containerd(daemon: Containerd) -> Iterator[Containerd]:
    """Containerd without any containers; afterwards there is none again."""
    yield daemon
    daemon.remove_all()


def counted(containerd: Containerd, name: str) -> int:
    """Return how far a counter has come: no number may be missing, or twice."""
    lines = containerd.exec(name, "cat", "/srv/counted").split()
    assert lines == [str(number) for number in range(1, len(lines) + 1)]
    return len(lines)


def counts_on(containerd: Containerd, name: str) -> None:
    """Wait until a counter has counted on."""
    before = counted(containerd, name)
    eventually(lambda: counted(containerd, name) > before + 1, f"{name} counts on")


def start_counter(containerd: Containerd, name: str) -> None:
    """Start a counter, and wait until it has counted a bit."""
    containerd.run(name, COUNTER)
    eventually(
        lambda: containerd.exec(name, "sh", "-c", "cat /srv/counted || true"), f"{name} counts"
    )


def test_the_life_of_a_container(containerd: Containerd) -> None:
    start_counter(containerd, "frog")
    containerd.exec("frog", "sh", "-c", "exit 7", status=7)
    assert "pids.current" in containerd("task", "metrics", "frog").stdout
    assert len(containerd("task", "ps", "frog").stdout.splitlines()) >= 2
    containerd("task", "pause", "frog")
    assert containerd.tasks() == {"frog": "PAUSED"}
    containerd("task", "resume", "frog")
    counts_on(containerd, "frog")
    containerd("task", "kill", "--signal=SIGKILL", "frog")
    eventually(lambda: containerd.tasks() == {"frog": "STOPPED"}, "its end")
    flags = containerd.flags("toad")
    done = containerd("run", "--rm", *flags, IMAGE, "toad", "sh", "-c", "echo hi; exit 3", status=3)
    assert done.stdout == "hi\n"


def test_a_terminal(containerd: Containerd) -> None:
    flags = containerd.flags("frog")
    # The client sets the size when the program runs already.
    shell = """tty; until [ "$(stty size)" = "30 90" ]; do sleep 0.02; done; echo sized
        read line; echo got $line; exit 6"""
    command = ("run", "--rm", "--tty", *flags, IMAGE, "frog", "sh", "-c", shell)
    with containerd.terminal(*command) as terminal:
        terminal.read_until("sized")
        terminal.write("word\r")
        terminal.read_until("got word")
        assert terminal.status() == 6


def test_a_checkpoint_into_a_directory(containerd: Containerd, tmp_path: Path) -> None:
    start_counter(containerd, "frog")
    image, work = tmp_path / "image", tmp_path / "work"
    flags = (f"--image-path={image}", f"--work-path={work}")
    containerd("task", "checkpoint", *flags, "frog")
    counts_on(containerd, "frog")
    assert (image / "checkpoint.img").exists()
    assert (work / "stats-dump").exists()
    containerd("task", "checkpoint", "--exit", *flags, "frog")
    eventually(lambda: containerd.tasks() == {"frog": "STOPPED"}, "its end")


def test_a_checkpoint_as_an_image_and_another_container_of_it(containerd: Containerd) -> None:
    start_counter(containerd, "frog")
    checkpoint = ("--rw", "--image", "--task", "frog", "localhost/frozen:1")
    containerd("container", "checkpoint", *checkpoint)
    counts_on(containerd, "frog")
    containerd.remove("frog")
    containerd("container", "restore", "--rw", "--live", "toad", "localhost/frozen:1")
    counts_on(containerd, "toad")


def pod(containerd: Containerd, logs: Path, *, network: int = 0, host: str = "pond") -> Message:
    """Return the configuration of a pod."""
    return {
        1: {1: "pond", 2: "some-uid", 3: "default"},  # metadata
        2: host,
        3: str(logs),
        # In Linux: the cgroup, and in its security context the modes of network and pids.
        8: {1: f"/{containerd.group}/pod", 2: {1: {1: network, 2: CONTAINER}}},
    }


def status(containerd: Containerd, container: bytes) -> Message:
    """Return what CRI says about a container: state (3), exit code (7)."""
    return decode(containerd.cri("ContainerStatus", {1: container})[1])


def test_a_pod_with_a_network_of_its_own(containerd: Containerd, tmp_path: Path) -> None:
    cri, config = containerd.cri, pod(containerd, tmp_path)
    sandbox = cri("RunPodSandbox", {1: config, 2: "woodfrog"})[1]
    network = decode(decode(cri("PodSandboxStatus", {1: sandbox})[1])[5])
    assert network[1].startswith(b"10.217.0.")
    wanted = {
        1: {1: "frog"},
        2: {1: IMAGE},
        3: ["sh", "-c", "trap 'exit 3' TERM; echo hi; while :; do sleep 0.05; done"],
        11: "frog.log",
        # In Linux: at most so much memory, and a pid namespace of its own.
        15: {1: {4: 64 << 20}, 2: {3: {2: CONTAINER}}},
    }
    container = cri("CreateContainer", {1: sandbox, 2: wanted, 3: config})[1]
    cri("StartContainer", {1: container})
    assert status(containerd, container)[3] == RUNNING
    script = "hostname; ip address show eth0; echo error >&2; exit 4"
    done = cri("ExecSync", {1: container, 2: ["sh", "-c", script], 3: 30})
    assert done[1].startswith(b"pond\n")
    assert network[1] in done[1]
    assert (done[2], done[3]) == (b"error\n", 4)
    assert decode(cri("ContainerStats", {1: container})[1])[3]
    cri("UpdateContainerResources", {1: container, 2: {4: 32 << 20}})
    limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max"
    done = cri("ExecSync", {1: container, 2: ["sh", "-c", limit], 3: 30})
    assert int(done[1]) == 32 << 20
    eventually((tmp_path / "frog.log").read_text, "the log")
    assert (tmp_path / "frog.log").read_text().endswith(" stdout F hi\n")

    # Containerd 1.6 has no CheckpointContainer; its client can do it.
    ctr = ("--namespace=k8s.io", "task", "checkpoint", f"--image-path={tmp_path}/image")
    containerd(*ctr, container.decode())
    assert (tmp_path / "image/checkpoint.img").exists()
    assert status(containerd, container)[3] == RUNNING

    cri("StopContainer", {1: container, 2: 50})
    ended = status(containerd, container)
    assert (ended[3], ended[7]) == (EXITED, 3)
    cri("RemoveContainer", {1: container})
    cri("StopPodSandbox", {1: sandbox})
    cri("RemovePodSandbox", {1: sandbox})
    assert containerd("--namespace=k8s.io", "container", "ls", "--quiet").stdout == ""


def test_a_pod_in_the_network_of_the_host(containerd: Containerd, tmp_path: Path) -> None:
    cri = containerd.cri
    # An error is told, although the shim gives no stderr to write to.
    with pytest.raises(CriError, match="hostname is set"):
        cri("RunPodSandbox", {1: pod(containerd, tmp_path, network=NODE), 2: "woodfrog"})

    config = pod(containerd, tmp_path, network=NODE, host="")
    sandbox = cri("RunPodSandbox", {1: config, 2: "woodfrog"})[1]
    options = {1: NODE, 2: 0}
    wanted = {1: {1: "frog"}, 2: {1: IMAGE}, 3: ["sleep", "1000"], 15: {2: {3: options}}}
    container = cri("CreateContainer", {1: sandbox, 2: wanted, 3: config})[1]
    cri("StartContainer", {1: container})
    # Its pid namespace is the pod's: there the pod's own first process is seen.
    done = cri("ExecSync", {1: container, 2: ["ps", "-o", "args"], 3: 30})
    assert done[1].split(b"\n")[1] == b"sleep infinity"
    # Network devices of the node, which here are those of the daemon.
    assert b"pond0" in cri("ExecSync", {1: container, 2: ["ip", "link"], 3: 30})[1]
