"""What a container that is left running sees of its snapshot, and what becomes of one."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundles import Bundle
from containers import Container, Woodfrog, eventually, is_gone, verdict
from needs import needs

pytestmark = needs("root", "command python3")

# Fills memory, and then counts what happens to it: nothing may.
SCRIPT = """
import os, signal, sys, time
memory = bytearray(os.urandom(4096)) * ({megabytes} * 256)
open("/work/ready", "w").close()
while not os.path.exists("/work/check"):
    memory[(int(time.monotonic() * 1e6) * 4096) % len(memory)] ^= 1
try:
    os.waitpid(-1, os.WNOHANG | 0x40000000)
except ChildProcessError:
    open("/work/out", "w").write("ok\\n")
"""


@pytest.fixture
def start(woodfrog: Woodfrog) -> Callable[..., Container]:
    """Start a container with so many megabytes of memory, and with these resources."""

    def begin(megabytes: int, resources: dict[str, Any] | None = None) -> Container:
        script = SCRIPT.format(megabytes=megabytes)
        bundle = Bundle(woodfrog.directory / "bundle", ["/usr/bin/python3", "-c", script])
        bundle.add_host_programs()
        bundle.config["linux"]["resources"] = resources or {}
        container = woodfrog.run(bundle)
        container.wait_for("ready")
        return container

    return begin


def statistics(container: Container, image: Path) -> dict[str, Any]:
    """Make a checkpoint that leaves the container running, and return its figures."""
    told = container.checkpoint(image, "--leave-running", "--stats", "--sync=none")
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def test_the_container_runs_while_its_image_is_written(
    start: Callable[..., Container], woodfrog: Woodfrog
) -> None:
    container = start(64)

    found = statistics(container, woodfrog.directory / "image")

    assert found["snapshots"] == 1
    assert found["page_bytes"] > 64 << 20
    # Not a figure of speed: of the whole, the pause is the part in which nothing was written.
    assert found["frozen_us"] < sum(found[f"{part}_us"] for part in ("stop", "collect", "write"))
    restored = woodfrog.restore(container.bundle, woodfrog.directory / "image")
    assert verdict(restored) == "ok\n"
    assert verdict(container) == "ok\n"


def test_a_container_whose_changes_are_noted_is_copied_as_any(
    start: Callable[..., Container], woodfrog: Woodfrog
) -> None:
    container = start(70)
    container.checkpoint(woodfrog.directory / "first", "--leave-running", "--track-changes")

    found = statistics(container, woodfrog.directory / "image")

    assert found["snapshots"] == 1
    assert verdict(container) == "ok\n"
    container.delete()
    assert verdict(woodfrog.restore(container.bundle, woodfrog.directory / "image")) == "ok\n"


@pytest.mark.parametrize(
    "resources",
    [{"pids": {"limit": 1}}, {"memory": {"limit": 100 << 20}}],
    ids=["too few processes", "too little memory"],
)
def test_a_container_that_may_not_fork_is_copied_while_it_stands_still(
    resources: dict[str, Any], start: Callable[..., Container], woodfrog: Woodfrog
) -> None:
    container = start(64, resources)

    found = statistics(container, woodfrog.directory / "image")

    assert found["snapshots"] == 0
    container.delete()
    assert verdict(woodfrog.restore(container.bundle, woodfrog.directory / "image")) == "ok\n"


def copies(pid: int) -> list[int]:
    """Return the children of a process that are copies of it, ended or not."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child)
        for child in children
        if Path(f"/proc/{child}/comm").read_text().strip() == "woodfrog-copy"
    ]


# Children with much memory, which end when they are told to, or see that they have been copied.
CHILDREN = """
import os, time
children = []
for number in range(3):
    children.append(os.fork())
    if not children[-1]:
        memory = bytearray(os.urandom(4096)) * (128 * 256)
        copies = open(f"/proc/self/task/{os.getpid()}/children")
        open(f"/work/ready{number}", "w").close()
        while not os.path.exists("/work/check"):
            if copies.seek(0) or copies.read():
                os._exit(0)
        os._exit(memory.count(memory[:4096]) != 128 * 256)
ends = [os.waitpid(child, 0)[1] for child in children]
while not os.path.exists("/work/check"):
    time.sleep(0.01)
open("/work/out", "w").write(str(ends) if any(ends) else "ok\\n")
"""


def test_processes_that_end_while_they_are_written_are_in_the_image(woodfrog: Woodfrog) -> None:
    bundle = Bundle(woodfrog.directory / "bundle", ["/usr/bin/python3", "-c", CHILDREN])
    bundle.add_host_programs()
    container = woodfrog.run(bundle)
    for number in range(3):
        container.wait_for(f"ready{number}")
    listed = Path(f"/proc/{container.init}/task/{container.init}/children").read_text()

    container.checkpoint(woodfrog.directory / "image", "--leave-running", "--sync=none")

    for child in listed.split():
        eventually(lambda pid=int(child): is_gone(pid), "it has ended")
    assert verdict(container) == "ok\n"
    restored = woodfrog.restore(bundle, woodfrog.directory / "image")
    listed = Path(f"/proc/{restored.init}/task/{restored.init}/children").read_text()
    assert len(listed.split()) == 3
    assert verdict(restored) == "ok\n"


def test_a_copy_hears_no_signal_that_its_process_group_gets(
    start: Callable[..., Container], woodfrog: Woodfrog
) -> None:
    container = start(16)
    done = threading.Event()

    def send() -> None:
        while not done.is_set():
            os.killpg(container.init, signal.SIGWINCH)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        for number in range(5):
            statistics(container, woodfrog.directory / f"image{number}")
    finally:
        done.set()
        sender.join()
    assert verdict(container) == "ok\n"


def test_a_killed_runtime_leaves_at_most_what_the_next_command_removes(
    start: Callable[..., Container], woodfrog: Woodfrog
) -> None:
    container = start(256)
    image = woodfrog.directory / "image"
    command = subprocess.Popen(
        woodfrog.command("checkpoint", f"--image-path={image}", "--leave-running", container.name),
        start_new_session=True,
    )
    eventually(lambda: copies(container.init), "the copy is there")
    guardians = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()

    os.killpg(command.pid, signal.SIGKILL)

    command.wait()
    for guardian in guardians:
        eventually(lambda pid=int(guardian): is_gone(pid), "the guardian ends")
    assert not container.has_ended()
    woodfrog("state", container.name)
    container.checkpoint(woodfrog.directory / "another", "--leave-running", "--sync=none")
    assert copies(container.init) == []
    assert verdict(container) == "ok\n"
