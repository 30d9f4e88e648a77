"""Woodfrog is killed at any moment of any command: containers go on, and nothing is left."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from real_programs import KILLS, compiled
from unharmed import around, condition, goes_on, is_as_before, lasting, ours

from bundles import Bundle
from containers import Woodfrog, eventually, verdict
from needs import needs
from started import children_of

pytestmark = needs("root", "command gcc")

# How often a command is first run to its end: only then does it take as long as it will.
WARMING = 2
# Of what is done at random moments little is seen by few kills.
at_random = pytest.mark.skipif("WOODFROG_SOAK" not in os.environ, reason="./soak does it")


def kill_children(pid: int) -> None:
    """Kill who works for a command, as the out-of-memory killer might."""
    for child in children_of(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


HOW: dict[str, Callable[[int], None]] = {
    "the command": lambda pid: os.kill(pid, signal.SIGKILL),
    "who works for it": kill_children,
    "all": lambda pid: os.killpg(pid, signal.SIGKILL),
    "interrupt": lambda pid: os.killpg(pid, signal.SIGINT),
    "terminate": lambda pid: os.kill(pid, signal.SIGTERM),
}
# What is done to a container that runs, and goes on.
COMMANDS = {
    "checkpoint": ("checkpoint", "--leave-running", "--image-path={}"),
    "pre-dump": ("checkpoint", "--pre-dump", "--image-path={}"),
    "check": ("check",),
}


@at_random
@pytest.mark.parametrize("what", COMMANDS)
def test_a_container_goes_on_whoever_was_killed(
    what: str, woodfrog: Woodfrog, chance: random.Random, build: Callable[..., Path]
) -> None:
    container = woodfrog.run(compiled(woodfrog, build, "manifold.c"))
    container.wait_for("ready")
    goes_on(container)
    image = woodfrog.directory / "image"
    command = woodfrog.command(*(word.format(image) for word in COMMANDS[what]), container.name)
    for _ in range(WARMING):
        begun = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        takes = time.monotonic() - begun
        shutil.rmtree(image, ignore_errors=True)
    before, outside, helpers = condition(lasting(container)), around(woodfrog), ours(woodfrog)
    for number in range(KILLS):
        how = chance.choice(list(HOW))
        moment = chance.uniform(0, takes * 1.1)
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, start_new_session=True
        ) as runtime:
            time.sleep(moment)
            if runtime.poll() is None:
                HOW[how](runtime.pid)
        where = f"kill {number} of {how} after {moment:.4f} s of {takes:.4f}"
        print(where, runtime.returncode)
        assert container.state()["status"] == "running", where
        goes_on(container)
        is_as_before(before, where)
        eventually(lambda: ours(woodfrog) == helpers, f"{where}: {ours(woodfrog)} end", 10)
        eventually(lambda: around(woodfrog) == outside, f"{where}: {around(woodfrog)}", 10)
        shutil.rmtree(image, ignore_errors=True)
    assert verdict(container) == "ok\n"


def has_memory_of_ours(pid: int) -> bool:
    maps = Path(f"/proc/{pid}/maps").read_text()
    return any(line.split()[1:] == ["r-xp", "00000000", "00:00", "0"] for line in maps.splitlines())


def test_a_command_tidies_up_after_who_was_killed_at_work_for_it(
    woodfrog: Woodfrog, build: Callable[..., Path]
) -> None:
    container = woodfrog.run(compiled(woodfrog, build, "manifold.c"))
    container.wait_for("ready")
    before, image = condition(lasting(container)), woodfrog.directory / "image"
    command = woodfrog.command(
        "checkpoint", "--leave-running", f"--image-path={image}", container.name
    )
    for _ in range(20):  # the moment may be missed
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as runtime:
            while runtime.poll() is None and not has_memory_of_ours(container.init):
                pass
            kill_children(runtime.pid)
            _, said = runtime.communicate(timeout=60)
        if runtime.returncode:
            break
        shutil.rmtree(image)
    assert "the process that held the container was ended" in said
    assert "the container is running as before" in said
    is_as_before(before, "at once")
    goes_on(container)
    container.checkpoint(image, "--leave-running")
    assert verdict(container) == "ok\n"


# What makes a container, or something like one; in a directory with an image.
MAKERS = {
    "create": ("create", "--bundle={bundle}", "{name}"),
    "run": ("run", "--detach", "--bundle={bundle}", "{name}"),
    "restore": ("restore", "--detach", "--bundle={bundle}", "--image-path={image}", "{name}"),
    "background": (
        *("restore", "--background", "--detach", "--bundle={bundle}"),
        *("--image-path={image}", "{name}"),
    ),
    "template": ("restore", "--template=warmed", "--detach", "--bundle={bundle}", "{name}"),
    "warm": ("warm", "--image-path={image}", "{name}"),
}


@at_random
@pytest.mark.parametrize("what", MAKERS)
def test_nothing_is_left_of_what_was_being_made(
    what: str, woodfrog: Woodfrog, chance: random.Random, build: Callable[..., Path]
) -> None:
    # io_uring is not for templates.
    bundle = compiled(woodfrog, build, "manifold.c", "ringless")
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image)
    container.delete()
    if what == "template":
        woodfrog("warm", f"--image-path={image}", "warmed")
    before = (image / "checkpoint.img").read_bytes()
    outside, takes = around(woodfrog), 0.0

    def end(name: str) -> None:
        if what == "warm":
            woodfrog("warm", "--drop", name, status=None)
            return
        said = woodfrog("state", name, status=None)
        assert "internal error" not in said.stderr
        woodfrog("delete", "--force", name)

    for number in range(-WARMING, KILLS):
        name = f"wf-{os.getpid()}-{what}{number}"
        woodfrog.names.append(name)
        bundle.config["linux"]["cgroupsPath"] = f"/{name}"
        bundle.save()
        words = [
            word.format(bundle=bundle.directory, image=image, name=name) for word in MAKERS[what]
        ]
        how, moment = chance.choice(list(HOW)), chance.uniform(0, takes * 1.1)
        begun = time.monotonic()
        output = (woodfrog.directory / "output").open("ab")
        with (
            output,
            subprocess.Popen(
                woodfrog.command(*words),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            ) as runtime,
        ):
            if number >= 0:
                time.sleep(moment)
                if runtime.poll() is None:
                    HOW[how](runtime.pid)
        where = f"kill {number} of {how} after {moment:.4f} s of {takes:.4f}"
        print(where, runtime.returncode)
        if number < 0:
            takes = time.monotonic() - begun
            assert runtime.returncode == 0, (woodfrog.directory / "output").read_text()
        end(name)
        eventually(
            lambda: around(woodfrog) == outside, f"{where}: {around(woodfrog)}, not {outside}", 10
        )
        assert (image / "checkpoint.img").read_bytes() == before
    if what == "template":
        woodfrog("warm", "--drop", "warmed")
    eventually(lambda: ours(woodfrog) == [], f"{ours(woodfrog)} end", 10)


@at_random
def test_a_checkpoint_that_was_killed_is_there_or_the_container_is(
    woodfrog: Woodfrog, chance: random.Random, build: Callable[..., Path]
) -> None:
    bundle = compiled(woodfrog, build, "manifold.c", "ringless")
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image, takes = woodfrog.directory / "image", 0.0
    for number in range(-WARMING, KILLS):
        how, moment = chance.choice(list(HOW)), chance.uniform(0, takes * 1.1)
        command = woodfrog.command("checkpoint", f"--image-path={image}", container.name)
        begun = time.monotonic()
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        ) as runtime:
            if number >= 0:
                time.sleep(moment)
                if runtime.poll() is None:
                    HOW[how](runtime.pid)
        takes = time.monotonic() - begun if number < 0 else takes
        where = f"kill {number} of {how} after {moment:.4f} s of {takes:.4f}"
        print(where, runtime.returncode)
        # What the guardian is still at, it does.
        eventually(lambda: ours(woodfrog) == [], f"{where}: {ours(woodfrog)} end", 10)
        status = container.state()["status"]
        is_there = (image / "checkpoint.img").exists()
        print(status, is_there)
        if status == "stopped":
            assert is_there, where
            container.delete()
            container = woodfrog.restore(bundle, image)
        goes_on(container)
        shutil.rmtree(image, ignore_errors=True)
    assert verdict(container) == "ok\n"


AGAIN = ("exec", "delete", "kill", "pause", "start")


@at_random
@pytest.mark.parametrize("what", AGAIN)
def test_a_command_that_was_killed_can_be_given_again(
    what: str, woodfrog: Woodfrog, chance: random.Random
) -> None:
    bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sleep", "1000"])
    bundle.add_host_programs()
    takes = 0.0
    for number in range(-WARMING, KILLS):
        container = woodfrog.create(bundle) if what == "start" else woodfrog.run(bundle)
        words = {
            "exec": ("exec", container.name, "/bin/true"),
            "delete": ("delete", "--force", container.name),
            "kill": ("kill", container.name, "KILL"),
        }.get(what, (what, container.name))
        how, moment = chance.choice(list(HOW)), chance.uniform(0, takes * 1.1)
        begun = time.monotonic()
        with subprocess.Popen(
            woodfrog.command(*words), stdin=subprocess.DEVNULL, start_new_session=True
        ) as runtime:
            if number >= 0:
                time.sleep(moment)
                if runtime.poll() is None:
                    HOW[how](runtime.pid)
        takes = time.monotonic() - begun if number < 0 else takes
        where = f"kill {number} of {how} after {moment:.4f} s of {takes:.4f}"
        print(where, runtime.returncode)
        said = woodfrog("state", container.name, status=None)
        assert "internal error" not in said.stderr, where
        if what == "exec":
            woodfrog(*words)
            before = lasting(container)
            assert before == [container.init], where
        elif what == "pause":
            woodfrog("resume", container.name, status=None)
            woodfrog("pause", container.name)
            woodfrog("resume", container.name)
            woodfrog("exec", container.name, "/bin/true")
        elif what == "start":
            if json.loads(said.stdout)["status"] == "created":
                woodfrog("start", container.name)
            woodfrog("exec", container.name, "/bin/true")
        container.delete()
        eventually(lambda: not ours(woodfrog), f"{where}: {ours(woodfrog)} end", 10)
        assert woodfrog.leftovers() == [], where
