"""Terminals: of `run` in the foreground, and handed over at a console socket."""

import array
import os
import socket
from collections.abc import Callable
from pathlib import Path

from bundles import Bundle
from containers import Woodfrog
from terminals import in_a_terminal, read_until, set_size

Make = Callable[[str], Bundle]
Name = Callable[[Bundle], str]


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
    with in_a_terminal(command, os.environ, rows=30, columns=90) as terminal:
        before = terminal.read_until("READY")
        assert "/dev/pts/0" in before
        assert "character special file" in before
        assert "30 90" in before
        terminal.write("word\r")
        terminal.read_until("got word")
        set_size(terminal.master, 40, 100)
        terminal.write("more\r")
        assert "40 100" in terminal.read_until("RESIZED")
        terminal.write("end\r")
        assert terminal.status() == 5


def test_without_a_terminal_of_ours_its_output_is_relayed_all_the_same(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle("tty && echo yes")
    bundle.process["terminal"] = True
    name = new_name(bundle)
    done = woodfrog("run", "-b", str(bundle.directory), name)
    assert done.stdout.split() == ["/dev/pts/0", "yes"]


def test_what_a_full_screen_program_writes_comes_through_unchanged(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name, tmp_path: Path
) -> None:
    bundle = make_bundle(r"printf 'line\n'; stty raw; printf 'BEGIN\nup\r\nEND'; stty sane")
    bundle.process["terminal"] = True
    name = new_name(bundle)
    run = ("run", "-b", str(bundle.directory), name)
    with in_a_terminal(woodfrog.command(*run), os.environ, rows=30, columns=90) as terminal:
        told = terminal.read_until("END")
        assert terminal.status() == 0
    assert "line\r\n" in told
    assert "BEGIN\nup\r\nEND" in told
    # In a file or pipe, a line is a line.
    woodfrog(*run, output=tmp_path / "output")
    assert (tmp_path / "output").read_bytes() == b"line\nBEGIN\nup\r\nEND"


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
