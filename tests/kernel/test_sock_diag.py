"""sock_diag tells of sockets what we made them."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from needs import needs
from woodfrog.kernel.netlink.sock_diag import (
    TCP_CLOSE,
    TCP_ESTABLISHED,
    TCP_LISTEN,
    InetSocket,
    UnixSocket,
    diag_socket,
    tcp_socket,
    tcp_sockets,
    unix_sockets,
)

pytestmark = needs("root")


def inode(sock: socket.socket) -> int:
    """Return by which number the kernel knows a socket."""
    return os.fstat(sock.fileno()).st_ino


def unix(sock: socket.socket) -> UnixSocket:
    """Return what is told of a unix socket of ours."""
    with diag_socket(os.getpid()) as diag:
        (found,) = [one for one in unix_sockets(diag) if one.inode == inode(sock)]
    return found


def tcp(sock: socket.socket) -> list[InetSocket]:
    """Return what is told of a TCP socket of ours."""
    with diag_socket(os.getpid()) as diag:
        return [one for one in tcp_sockets(diag) if one.inode == inode(sock)]


def test_a_pair_knows_each_other() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        found = unix(one)
        assert (found.type, found.state) == (socket.SOCK_SEQPACKET, TCP_ESTABLISHED)
        assert found.peer == inode(other)
        assert unix(other).peer == inode(one)
        assert (found.name, found.file, found.shutdown) == (b"", None, 0)


@pytest.mark.parametrize(
    ("how", "told"), [(socket.SHUT_RD, 1), (socket.SHUT_WR, 2), (socket.SHUT_RDWR, 3)]
)
def test_a_socket_that_was_shut_says_so(how: int, told: int) -> None:
    one, other = socket.socketpair()
    with one, other:
        one.shutdown(how)
        assert unix(one).shutdown == told


def test_a_bound_path_and_its_file_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("here")
        found = unix(sock)
    assert found.name.rstrip(b"\0") == b"here"
    assert found.file is not None
    assert found.file[0] == (tmp_path / "here").stat().st_ino & 0xFFFFFFFF
    assert found.state == TCP_CLOSE


def test_an_abstract_name_begins_with_a_zero() -> None:
    name = b"\0woodfrog \0 test %d" % os.getpid()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(name)
        assert unix(sock).name == name


def test_a_listener_tells_its_backlog_and_who_waits(tmp_path: Path) -> None:
    clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(17)
        for client in clients:
            client.connect(str(tmp_path / "s"))
        found = unix(listener)
        assert (found.state, found.queued, found.backlog) == (TCP_LISTEN, 3, 17)
        assert len(found.pending) == 3
        # They are named by the sockets that wait to be accepted or by those that connected.
        with diag_socket(os.getpid()) as diag:
            peers = {one.inode: one.peer for one in unix_sockets(diag)}
        ours = {inode(client) for client in clients}
        assert {one if one in ours else peers[one] for one in found.pending} == ours
        for client in clients:
            client.close()


def test_bytes_in_a_queue_are_counted() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.send(b"12345")
        assert unix(other).queued >= 5


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_tcp_sockets_are_told_with_addresses_and_queues(
    family: socket.AddressFamily, address: str
) -> None:
    with socket.socket(family) as listener, socket.socket(family) as client:
        listener.bind((address, 0))
        listener.listen(9)
        client.connect(listener.getsockname())
        ours, theirs = client.getsockname()[1], listener.getsockname()[1]
        packed = socket.inet_pton(family, address)
        (told,) = tcp(listener)
        assert (told.family, told.state, told.local) == (family, TCP_LISTEN, (packed, theirs))
        assert (told.receive_queue, told.send_queue) == (1, 9)
        accepted, _ = listener.accept()
        with accepted:
            client.send(b"12345")
            (told,) = tcp(accepted)
            assert told.state == TCP_ESTABLISHED
            assert (told.local, told.remote) == ((packed, theirs), (packed, ours))
            assert (told.receive_queue, told.send_queue) == (5, 0)


def test_sockets_of_another_network_namespace_are_found_only_there() -> None:
    name = f"woodfrog elsewhere {os.getpid()}"
    script = (
        "import socket\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        f"s.bind('\\0{name}')\n"
        "print('ready', flush=True)\n"
        "input()\n"
    )
    command = ["unshare", "--net", "python3", "-S", "-c", script]
    pipe = subprocess.PIPE
    before = os.readlink("/proc/thread-self/ns/net")
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with diag_socket(process.pid) as diag:
            assert [one.name for one in unix_sockets(diag)] == [b"\0" + name.encode()]
            assert tcp_sockets(diag) == []
        with diag_socket(os.getpid()) as diag:
            assert b"\0" + name.encode() not in {one.name for one in unix_sockets(diag)}
        process.send_signal(signal.SIGKILL)
    assert os.readlink("/proc/thread-self/ns/net") == before


def test_a_process_that_is_gone_has_no_namespace() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(FileNotFoundError), diag_socket(process.pid):
        pass


def test_what_has_just_these_ends_is_told_also_when_it_has_ended() -> None:
    with diag_socket(os.getpid()) as diag, socket.create_server(("127.0.0.1", 0)) as listener:

        def found(name: tuple[str, int], peer: tuple[str, int]) -> InetSocket | None:
            ends = ((socket.inet_aton(host), port) for host, port in (name, peer))
            return tcp_socket(diag, *ends)

        home = listener.getsockname()
        with socket.create_connection(home) as client:
            there, _ = listener.accept()
            name = client.getsockname()
            told = found(name, home)
            assert told
            assert (told.inode, told.has_ended) == (inode(client), False)
            there.close()
        assert found(name, home) is None
        told = found(home, name)
        assert told
        assert (told.inode, told.has_ended) == (0, True)
