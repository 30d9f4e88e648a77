"""Unix sockets of running containers that go back to an image in place."""

import os
import re
import socket
from pathlib import Path

import pytest
from talking import prepared, set_back_after, tell

from containers import Container, Woodfrog, verdict
from needs import needs

SOURCES = Path(__file__).parent / "rollback"
PROGRAMS = ("unix_sockets.py", "unix_family.py")
CASES = [
    (program, change)
    for program in PROGRAMS
    for change in re.findall(r'^    "([a-z ]+)": ', (SOURCES / program).read_text(), re.MULTILINE)
]

pytestmark = needs("root")


def begun(woodfrog: Woodfrog, program: str, *how: str) -> tuple[Container, Path]:
    """Start one, and save it."""
    container = woodfrog.run(prepared(woodfrog, program, *how))
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    return container, image


@pytest.mark.parametrize(("program", "change"), CASES)
def test_unix_sockets_are_as_they_were(program: str, change: str, woodfrog: Woodfrog) -> None:
    container, image = begun(woodfrog, program)
    for _ in range(3):
        set_back_after(change, container, image)
    tell(container, "check")
    assert verdict(container) == "ok\n"


@pytest.mark.parametrize("changes", [("listen", "listen"), ("close",), ("accept", "accept")])
def test_who_is_outside_is_served_on_or_finds_it_closed(
    changes: tuple[str, ...], woodfrog: Woodfrog
) -> None:
    container = woodfrog.run(prepared(woodfrog, "unix_outside.py"))
    container.wait_for("listens")
    work = os.open(container.bundle.work, os.O_PATH)
    clients = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    for one in clients[:2]:
        one.connect(f"/proc/self/fd/{work}/outer")
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none", "--ext-unix-close")
    clients[1].close()
    for change, late in zip(changes, clients[2:], strict=False):
        if change == "accept":
            late.connect(f"/proc/self/fd/{work}/outer")
        set_back_after(change, container, image)
        if change == "accept":
            assert late.recv(99) == b""
    tell(container, "check")
    assert clients[0].recv(99) == b"for you"
    clients[0].send(b"thanks")
    with socket.socket(socket.AF_UNIX) as again:
        again.connect(f"/proc/self/fd/{work}/outer")
        assert again.recv(99) == b"welcome back"
        again.send(b"thanks")
        assert verdict(container) == "ok\n"
    for one in clients:
        one.close()
    os.close(work)


@pytest.mark.parametrize(
    ("how", "why"),
    [("other user", "when it was another user"), ("zombie", "which has ended and was not waited")],
)
def test_what_its_maker_cannot_make_again_is_refused(
    how: str, why: str, woodfrog: Woodfrog
) -> None:
    container, image = begun(woodfrog, "unix_makers.py", how)
    tell(container, "write")
    container.wait_for("changed")
    said = woodfrog("rollback", f"--image-path={image}", container.name, status=1).stderr
    assert why in said
    assert "the container is running as before" in said


def test_a_false_proc_keeps_nobody_waiting(woodfrog: Woodfrog) -> None:
    bundle = prepared(woodfrog, "unix_misled.py")
    bundle.config["mounts"] = [m for m in bundle.config["mounts"] if m["destination"] != "/proc"]
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    tell(container, "send")
    container.wait_for("changed")
    said = woodfrog("rollback", f"--image-path={image}", container.name, status=1).stderr
    assert "has led a connection elsewhere" in said
