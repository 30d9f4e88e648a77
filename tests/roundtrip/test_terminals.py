"""Terminals: of a container, of an `exec`, and of a program that makes them."""

import array
import contextlib
import os
import socket
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from shells import WAIT, frozen, shell

from containers import Woodfrog, eventually
from needs import needs

pytestmark = needs("root")


class Console:
    """A socket that a runtime sends a terminal's master to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.listener.settimeout(60)
        self.master = -1

    def receive(self) -> None:
        """Take the master."""
        connection, _ = self.listener.accept()
        with connection:
            _, ancillary, _, _ = connection.recvmsg(100, socket.CMSG_SPACE(4))
        self.master = array.array("i", ancillary[0][2])[0]

    def read_until(self, text: bytes) -> bytes:
        """Read what is shown until it contains a text."""
        shown = b""
        os.set_blocking(self.master, False)

        def look() -> bool:
            nonlocal shown
            with contextlib.suppress(BlockingIOError):
                shown += os.read(self.master, 4096)
            return text in shown

        eventually(look, f"the terminal shows {text!r}")
        return shown

    def close(self) -> None:
        """Close everything."""
        self.listener.close()
        if self.master >= 0:
            os.close(self.master)


@pytest.fixture
def consoles(woodfrog: Woodfrog) -> Iterator[list[Console]]:
    """Three places for terminals."""
    made = [Console(woodfrog.directory / name) for name in ("tty1", "tty2", "tty3")]
    yield made
    for console in made:
        console.close()


@needs("command script")
def test_a_shell_in_a_terminal_of_its_own_goes_on(woodfrog: Woodfrog) -> None:
    inner = f"stty rows 7; : > /work/ready; {WAIT}; read typed; echo got:$typed; stty size; tty"
    (woodfrog.directory / "bundle" / "work").mkdir(parents=True)
    os.mkfifo(woodfrog.directory / "bundle" / "work" / "input")
    script = f"exec 3<>/work/input; script -qefc '{inner}' /work/typescript <&3"
    container = woodfrog.run(shell(woodfrog, script))
    container.wait_for("ready")
    image = frozen(container)

    restored = woodfrog.restore(container.bundle, image)
    (restored.bundle.work / "check").touch()
    (restored.bundle.work / "input").write_text("by hand\n")

    assert restored.wait() == 0, restored.told()
    said = (restored.bundle.work / "typescript").read_text().replace("\r", "").splitlines()
    assert [line for line in said if line in ("got:by hand", "7 0", "/dev/pts/0")] == [
        "got:by hand",
        "7 0",
        "/dev/pts/0",
    ]


def test_a_terminal_is_kept_with_its_size_its_modes_and_its_foreground_group(
    woodfrog: Woodfrog, consoles: list[Console]
) -> None:
    script = (
        "stty -echo rows 33 cols 77; read line; echo got:$line; stty size; stty -a | grep -c -- "
        "'-echo '; read line; echo then:$line; trap 'echo int' INT; while :; do sleep 0.05; done"
    )
    bundle = shell(woodfrog, script)
    bundle.process["terminal"] = True
    first, second, _ = consoles
    container = woodfrog.run(bundle, flags=("--console-socket", str(first.path)))
    first.receive()

    def is_set_up() -> bool:
        with open(f"/proc/{container.init}/fd/0") as terminal:
            return not termios.tcgetattr(terminal)[3] & termios.ECHO

    eventually(is_set_up, "the program sets its terminal up")
    image = frozen(container)

    restored = woodfrog.restore(bundle, image, "--console-socket", str(second.path))
    second.receive()
    os.write(second.master, b"hello\n")
    second.read_until(b"got:hello\r\n33 77\r\n1\r\n")
    os.write(second.master, b"again\n")
    second.read_until(b"then:again\r\n")
    assert not restored.has_ended()
    os.write(second.master, b"\x03")
    second.read_until(b"int")


@pytest.mark.parametrize("own", [False, True], ids=["no terminal", "a terminal"])
def test_a_terminal_of_exec_is_hung_up_or_the_containers_own(
    own: bool, woodfrog: Woodfrog, consoles: list[Console]
) -> None:
    bundle = shell(
        woodfrog, f": > /work/ready; {WAIT}; while [ ! -s /work/out ]; do sleep 0.02; done"
    )
    bundle.process["terminal"] = own
    first, second, third = consoles
    flags = ("--console-socket", str(first.path)) if own else ()
    container = woodfrog.run(bundle, flags=flags)
    if own:
        first.receive()
    container.wait_for("ready")
    inner = (
        "exec 9<>/dev/tty; trap 'echo hangup > /work/out; exit' HUP; : > /work/joined;"
        f"{WAIT}; echo here >&9; read line && echo $line > /work/out; sleep 5"
    )
    woodfrog(
        "exec",
        "--tty",
        "--detach",
        "--console-socket",
        str(third.path),
        container.name,
        "/bin/sh",
        "-c",
        inner,
    )
    third.receive()
    container.wait_for("joined")
    image = frozen(container)

    flags = ("--console-socket", str(second.path)) if own else ()
    restored = woodfrog.restore(bundle, image, *flags)
    if own:
        second.receive()
    (bundle.work / "check").touch()
    if own:
        second.read_until(b"here")
        os.write(second.master, b"a line\n")

    assert restored.wait() == 0
    assert (bundle.work / "out").read_text() == ("a line\n" if own else "hangup\n")
