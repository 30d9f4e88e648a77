"""Terminals: of `run` in the foreground, and handed over at a console socket."""

import array
import contextlib
import fcntl
import os
import pty
import select
import socket
import struct
import termios
import time
from collections.abc import Callable
from pathlib import Path

from bundles import Bundle
from containers import Woodfrog

Make = Callable[[str], Bundle]
Name = Callable[[Bundle], str]


def read_until(descriptor: int, text: bytes, within: float = 30) -> bytes:
    """Read from a terminal until a text has come."""
    found = b""
    end = time.monotonic() + within
    while text not in found:
        ready, _, _ = select.select([descriptor], [], [], end - time.monotonic())
        assert ready, found
        try:
            found += os.read(descriptor, 65536)
        except OSError:
            break
    assert text in found
    return found


def set_size(descriptor: int, rows: int, columns: int) -> None:
    """Set a terminal's size."""
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))


def test_a_terminal_in_the_foreground(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle(
        "tty; stat -c %F /dev/console; stty size; trap 'stty size; echo RESIZED' WINCH;"
        # A trapped signal makes read fail: read again.
        "echo READY; while :; do read line || continue; [ $line = end ] && exit 5;"
        "echo got $line; done"
    )
    bundle.process["terminal"] = True
    name = new_name(bundle)
    command = woodfrog.command("run", "-b", str(bundle.directory), name)
    master, slave = pty.openpty()
    set_size(slave, 30, 90)
    pid = os.fork()
    if pid == 0:
        os.close(master)
        os.login_tty(slave)
        os.execvp(command[0], command)
    os.close(slave)
    before = read_until(master, b"READY")
    assert b"/dev/pts/0" in before
    assert b"character special file" in before
    assert b"30 90" in before
    os.write(master, b"word\r")
    read_until(master, b"got word")
    set_size(master, 40, 100)
    os.write(master, b"more\r")
    assert b"40 100" in read_until(master, b"RESIZED")
    os.write(master, b"end\r")
    with contextlib.suppress(OSError):  # EIO, when it has ended
        while os.read(master, 65536):
            pass
    _, status = os.waitpid(pid, 0)
    os.close(master)
    assert os.waitstatus_to_exitcode(status) == 5


def test_without_a_terminal_of_ours_its_output_is_relayed_all_the_same(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle("tty && echo yes")
    bundle.process["terminal"] = True
    name = new_name(bundle)
    done = woodfrog("run", "-b", str(bundle.directory), name)
    assert done.stdout.split() == ["/dev/pts/0", "yes"]


def test_a_console_socket_gets_the_master(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name, tmp_path: Path
) -> None:
    bundle = make_bundle("stty size; echo READY; read line; echo got $line; touch /work/done")
    bundle.process["terminal"] = True
    bundle.process["consoleSize"] = {"height": 11, "width": 22}
    name = new_name(bundle)
    path = str(tmp_path / "console")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        create = ["create", "--console-socket", path, "-b", str(bundle.directory), name]
        woodfrog(*create)
        connection, _ = listener.accept()
        with connection:
            _, (message,), _, _ = connection.recvmsg(100, socket.CMSG_SPACE(4))
            (master,) = array.array("i", message[2])
    woodfrog("start", name)
    assert b"11 22" in read_until(master, b"READY")
    os.write(master, b"word\n")
    read_until(master, b"got word")
    os.close(master)


def test_a_terminal_needs_someone_to_hold_it(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle("true")
    bundle.process["terminal"] = True
    name = new_name(bundle)
    directory = str(bundle.directory)
    assert "--console-socket" in woodfrog("run", "-d", "-b", directory, name, status=1).stderr
    woodfrog("create", "-b", directory, name)
    assert "--console-socket" in woodfrog("start", name, status=1).stderr
