"""TCP connections with clients outside the container."""

import contextlib
import ipaddress
import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bundles import Bundle, bind
from containers import Container, Woodfrog, eventually, verdict
from needs import needs

pytestmark = needs("root", "command gcc", "command nft", "command ip")
PROGRAM = Path(__file__).parent / "connected" / "adding.c"


# A network like that of an engine, made by a hook: it tells when it is there, and then takes time.
NETWORK_HOOK = """
pid=$(sed 's/.*"pid": *\\([0-9]*\\).*/\\1/')
ip link add {link} type veth peer name eth0 netns $pid
ip address add {outside}/30 dev {link}
ip link set {link} up
nsenter -t $pid -n ip address add {inside}/30 dev eth0
nsenter -t $pid -n ip link set eth0 up
touch {work}/network
while [ -e {work}/wait ]; do sleep 0.02; done
"""


class Client:
    """A client of the container's program, which adds up what it is sent."""

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection((address, port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, number: int) -> None:
        self.socket.sendall(struct.pack("=i", number))

    def answer(self) -> int:
        (found,) = struct.unpack("=i", self.socket.recv(4, socket.MSG_WAITALL))
        return int(found)

    def add(self, number: int) -> int:
        self.send(number)
        return self.answer()


@pytest.fixture(autouse=True)
def no_tables_left(woodfrog: Woodfrog) -> Iterator[None]:
    """Remove what a checkpoint leaves for a restore that a failed test has not come to."""
    yield
    for name in tables(woodfrog):
        subprocess.run(["nft", "delete", "table", "inet", name], check=True)


@pytest.fixture
def port() -> int:
    """A port of the host that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@pytest.fixture
def bundle(woodfrog: Woodfrog, build: Callable[..., Path], port: int) -> Bundle:
    """The program, to serve the port."""
    program = build(PROGRAM)
    bundle = Bundle(woodfrog.directory / "bundle", ["/programs/" + program.name, str(port)])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))
    return bundle


@pytest.fixture
def server(woodfrog: Woodfrog, bundle: Bundle) -> Container:
    """A container in the host's network namespace."""
    namespaces = bundle.config["linux"]["namespaces"]
    namespaces[:] = [entry for entry in namespaces if entry["type"] != "network"]
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    return container


@pytest.fixture
def client(server: Container, port: int) -> Iterator[Client]:
    """A client that has begun to count."""
    found = Client(port)
    with contextlib.closing(found.socket):
        assert found.add(5) == 5
        yield found


def waiting(container: Container) -> set[str]:
    """Return how the kernel tells the container's connections that nobody has accepted."""
    words = ["nsenter", f"--target={container.init}", "--net", "ss", "-Htaen", "sport", "7072"]
    shown = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout
    found = {
        line.partition("sk:")[2].split()[0] for line in shown.splitlines() if "LISTEN" not in line
    }
    assert found
    return found


def frozen(container: Container) -> Path:
    """Freeze a container with its connections, delete it, and return its image."""
    image = container.woodfrog.directory / "image"
    container.checkpoint(image, "--tcp-established")
    container.wait()
    container.delete()
    return image


def test_connections_that_nobody_has_accepted_are_given_up_by_a_flag(
    server: Container, client: Client, port: int
) -> None:
    os.kill(server.init, signal.SIGSTOP)
    late = Client(port)
    image = server.woodfrog.directory / "image"
    with contextlib.closing(late.socket):
        late.send(1)
        refused = server.checkpoint(image, "--tcp-established", status=1)
        assert f"1 TCP connections to port {port} have not been accepted" in refused.stderr

        server.checkpoint(image, "--tcp-established", "--skip-in-flight")
        server.delete()
        restored = server.woodfrog.restore(server.bundle, image, "--tcp-established")
        eventually(lambda: is_stopped(restored), "the program is stopped again")
        os.kill(restored.init, signal.SIGCONT)

        # It may be about to accept the one that is no more; and gets another.
        another = Client(port)
        with contextlib.closing(another.socket):
            assert another.add(1) == 1
        assert client.add(6) == 11
        with pytest.raises(ConnectionResetError):
            late.add(2)


LISTENING = Path(__file__).parent / "connected" / "listening.c"


@pytest.mark.parametrize("when", ["checkpoint", "restore", "annotation"])
def test_only_listeners_are_kept_if_a_policy_says_so(
    woodfrog: Woodfrog, build: Callable[..., Path], when: str
) -> None:
    program = build(LISTENING)
    bundle = Bundle(woodfrog.directory / "bundle", ["/programs/" + program.name])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))
    if when == "annotation":
        bundle.config["annotations"] = {"org.woodfrog.tcp-listen-only": "true"}
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"

    container.checkpoint(image, *(["--tcp-listen-only"] if when == "checkpoint" else []))
    container.delete()
    restored = woodfrog.restore(
        bundle, image, *(["--tcp-listen-only"] if when == "restore" else [])
    )

    assert verdict(restored) == "ok\n"
    assert "TCP connections that nobody has accepted are given up" in restored.told()


def test_connections_to_outside_are_reset_if_only_listeners_are_kept(
    server: Container, client: Client, port: int
) -> None:
    os.kill(server.init, signal.SIGSTOP)
    late = Client(port)
    image = server.woodfrog.directory / "image"
    with contextlib.closing(late.socket):
        late.send(1)

        server.checkpoint(image, "--tcp-listen-only")
        server.delete()
        restored = server.woodfrog.restore(server.bundle, image)
        eventually(lambda: is_stopped(restored), "the program is stopped again")
        os.kill(restored.init, signal.SIGCONT)

        # It may be about to accept the one that is no more; and gets another.
        another = Client(port)
        with contextlib.closing(another.socket):
            assert another.add(1) == 1
            eventually(lambda: "Connection reset" in restored.told(), "the program sees the reset")
    assert tables(server.woodfrog) == []


def is_stopped(container: Container) -> bool:
    stat = Path(f"/proc/{container.init}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


def tables(woodfrog: Woodfrog) -> list[str]:
    """Return the names of the nftables tables that are there for the test's containers."""
    listed = subprocess.run(["nft", "--json", "list", "tables"], check=True, capture_output=True)
    found = [entry.get("table", {}) for entry in json.loads(listed.stdout)["nftables"]]
    ours = {f"woodfrog-{name}" for name in woodfrog.names}
    return [table["name"] for table in found if table.get("name") in ours]


def test_a_client_outside_notices_nothing(server: Container, client: Client) -> None:
    image = frozen(server)
    client.send(6)  # there is nobody: it must not be answered by a reset

    restored = server.woodfrog.restore(server.bundle, image, "--tcp-established")

    assert client.answer() == 11
    assert client.add(7) == 18
    assert not restored.has_ended(), restored.told()
    assert tables(server.woodfrog) == []


def test_both_sides_go_on_when_the_container_is_left_running(
    server: Container, client: Client
) -> None:
    image = server.woodfrog.directory / "image"

    server.checkpoint(image, "--leave-running", "--tcp-established")

    assert client.add(6) == 11
    assert tables(server.woodfrog) == []


def test_a_look_disturbs_no_connection(server: Container, client: Client) -> None:
    refused = server.woodfrog("check", server.name, status=1)
    assert "--tcp-established keeps it" in refused.stdout
    fine = server.woodfrog("check", "--tcp-established", server.name)
    assert "can be saved" in fine.stdout
    given_up = server.woodfrog("check", "--tcp-close", server.name)
    assert "not kept: 1 TCP connections" in given_up.stdout

    assert client.add(6) == 11
    assert tables(server.woodfrog) == []


def test_a_restore_may_reset_what_the_checkpoint_kept(
    server: Container, client: Client, port: int
) -> None:
    image = frozen(server)

    restored = server.woodfrog.restore(server.bundle, image, "--tcp-close")

    eventually(lambda: "Connection reset" in restored.told(), "the program sees the reset")
    with pytest.raises(ConnectionResetError):
        client.add(6)
    another = Client(port)
    with contextlib.closing(another.socket):
        assert another.add(1) == 1
    assert tables(server.woodfrog) == []


def test_an_image_alone_takes_over_no_connection(server: Container, client: Client) -> None:
    image = frozen(server)

    refused = server.woodfrog(
        *("restore", f"--image-path={image}", "--bundle", str(server.bundle.directory)),
        *("--detach", "never"),
        status=None,
    )

    assert refused.status not in (0, None)
    assert "--tcp-established" in refused.stderr
    client.send(6)
    server.woodfrog.restore(server.bundle, image, "--tcp-established")
    assert client.answer() == 11


def test_a_restore_that_fails_lets_the_next_one_have_the_connection(
    server: Container, client: Client
) -> None:
    image = frozen(server)
    held = server.bundle.work / "held"
    held.rename(server.bundle.work / "away")  # its descriptor comes after the connection's
    failed = server.woodfrog(
        *("restore", f"--image-path={image}", "--bundle", str(server.bundle.directory)),
        *("--detach", "--tcp-established", "never"),
        status=None,
    )
    assert failed.status not in (0, None)
    assert "held" in failed.stderr
    client.send(6)
    (server.bundle.work / "away").rename(held)

    server.woodfrog.restore(server.bundle, image, "--tcp-established")

    assert client.answer() == 11


def test_a_port_that_somebody_has_here_is_told_and_its_socket_answers_errors(
    server: Container, port: int
) -> None:
    image = frozen(server)
    with socket.create_server(("0.0.0.0", port)):
        restored = server.woodfrog.restore(server.bundle, image)

        eventually(lambda: "Invalid argument" in restored.told(), "the program sees the error")
        told = server.woodfrog.output(restored.name)
        assert f"nothing reaches port {port}: somebody has it here" in told


def test_nobody_answers_a_client_before_the_new_container_stands(
    woodfrog: Woodfrog, bundle: Bundle, port: int
) -> None:
    number = os.getpid() * 4 % (1 << 16)  # what runs beside us has a network of its own
    addresses = ipaddress.IPv4Network(f"10.213.{number >> 8}.{number & 255}/30")
    outside, inside = map(str, addresses.hosts())
    script = NETWORK_HOOK.format(
        work=bundle.work, link=f"wf-{os.getpid()}", outside=outside, inside=inside
    )
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=" + os.environ["PATH"]]}
    bundle.config["hooks"] = {"createRuntime": [hook]}
    first = woodfrog.run(bundle)
    first.wait_for("ready")
    client = Client(port, inside)
    with contextlib.closing(client.socket):
        assert client.add(5) == 5
        image = frozen(first)
        network, wait = bundle.work / "network", bundle.work / "wait"
        network.unlink()
        wait.touch()
        arguments = (bundle, image, "--tcp-established")
        with ThreadPoolExecutor() as threads:
            restored = threads.submit(woodfrog.restore, *arguments)
            eventually(network.exists, "the network is there")
            client.send(6)
            time.sleep(0.1)  # so long an answer would not take
            wait.unlink()
            restored.result()
        assert client.answer() == 11
        assert client.add(7) == 18


@needs("command ss")
def test_a_look_leaves_connections_that_nobody_has_accepted_alone(
    woodfrog: Woodfrog, build: Callable[..., Path]
) -> None:
    program = build(PROGRAM.parents[1] / "programs/tcp_waiting.c")
    bundle = Bundle(woodfrog.directory / "bundle", ["/programs/" + program.name])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    before = waiting(container)
    image = woodfrog.directory / "image"

    woodfrog("check", container.name)
    container.checkpoint(image, "--dry-run")
    assert waiting(container) == before

    container.checkpoint(image, "--leave-running")
    assert waiting(container) != before
    assert verdict(container) == "ok\n"


def test_sockets_that_have_no_place_here_are_told_and_answer(
    woodfrog: Woodfrog, build: Callable[..., Path]
) -> None:
    program = build(PROGRAM.parent / "unreachable.c")
    four, six, device = "10.214.7.1", "fd09::1", "wf-there"
    bundle = Bundle(woodfrog.directory / "bundle", ["/programs/" + program.name, four, six, device])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))
    (bundle.work / "gone").mkdir()
    script = f"""
        pid=$(sed 's/.*"pid": *\\([0-9]*\\).*/\\1/')
        within() {{ nsenter -t $pid -n ip "$@"; }}
        within link add {device} type veth peer name other
        within link set {device} up
        within address add {four}/30 dev {device}
        within address add {six}/64 dev {device} nodad
    """
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=" + os.environ["PATH"]]}
    bundle.config["hooks"] = {"createRuntime": [hook]}
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image)
    container.delete()
    (bundle.work / "gone/socket").unlink()
    (bundle.work / "gone").rmdir()
    del bundle.config["hooks"]

    restored = woodfrog.restore(bundle, image)

    told = woodfrog.output(restored.name)
    assert f"nothing reaches port 7079 of {four}" in told
    assert f"nothing reaches port 7079 of {six}" in told
    assert f"nothing reaches a socket that is bound to {device}: there is no such device" in told
    assert "nothing reaches the unix socket /work/gone/socket" in told
    assert "a socket is not connected: no way leads to 10.214.7.2" in told
    assert verdict(restored) == "ok\n"


def test_a_rollback_leaves_alone_what_stands_still_and_resets_the_rest_by_flag(
    server: Container, client: Client, woodfrog: Woodfrog
) -> None:
    image = woodfrog.directory / "image"
    server.checkpoint(image, "--leave-running", "--tcp-established", "--sync=none")
    back = ("rollback", f"--image-path={image}")
    woodfrog(*back, server.name)
    assert client.add(2) == 7

    said = woodfrog(*back, server.name, status=1).stderr
    assert "has gone on or was closed since" in said
    assert "--tcp-close" in said
    assert "the container is running as before" in said
    assert client.add(3) == 10

    said = woodfrog(*back, "--tcp-close", server.name).stderr
    assert "TCP connection" in said
    assert client.socket.recv(4) == b""
