"""Real programs that check themselves go through freeze and thaw at moments of chance."""

import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from real_programs import MOMENTS, compiled, compiled_go, program, thaw_again

from bundles import Bundle
from containers import Woodfrog, verdict
from needs import needs

pytestmark = needs("root")
Build = Callable[..., Path]


def frozen_at_moments(woodfrog: Woodfrog, bundle: Bundle, chance: random.Random) -> str:
    """Run a bundle, freeze and thaw it some times, and return its own verdict."""
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    for number in range(MOMENTS):
        time.sleep(chance.uniform(0, 0.5))
        # Every other time it runs before its memory is there.
        flags = ("--background",) if number % 2 else ()
        container = thaw_again(container, number, restore=flags)
    return verdict(container)


def test_cpython_with_eight_threads_loses_no_buffer(
    woodfrog: Woodfrog, chance: random.Random
) -> None:
    bundle = program(woodfrog, ["/usr/bin/python3", "/programs/threads.py"])

    assert frozen_at_moments(woodfrog, bundle, chance) == "ok\n"


@needs("command bash")
def test_a_pipeline_of_five_processes_loses_and_doubles_no_line(
    woodfrog: Woodfrog, chance: random.Random
) -> None:
    bundle = program(woodfrog, ["/bin/bash", "/programs/pipeline.sh"])

    assert frozen_at_moments(woodfrog, bundle, chance) == "ok\n"


@needs("command gcc")
def test_fifty_processes_and_two_hundred_threads_find_themselves_as_they_were(
    woodfrog: Woodfrog, chance: random.Random, build: Build
) -> None:
    bundle = compiled(woodfrog, build, "forest.c")

    assert frozen_at_moments(woodfrog, bundle, chance) == "ok\n"


@needs("command gcc")
def test_who_forks_and_ends_all_the_time_is_not_lost(
    woodfrog: Woodfrog, chance: random.Random, build: Build
) -> None:
    bundle = compiled(woodfrog, build, "relay.c")

    assert frozen_at_moments(woodfrog, bundle, chance) == "ok\n"


@needs("command gcc", "command nsenter", "kernel 6.14")
def test_who_forks_and_ends_where_ids_begin_anew_all_the_time_is_not_overlooked(
    woodfrog: Woodfrog, build: Build
) -> None:
    container = woodfrog.run(compiled(woodfrog, build, "relay.c"))
    container.wait_for("ready")
    # Since Linux 6.14 that is a limit of a pid namespace of its own.
    limit = ("sh", "-c", "echo 400 > /proc/sys/kernel/pid_max")
    pid = container.state()["pid"]
    subprocess.run(["nsenter", f"--target={pid}", "--pid", *limit], check=True)
    for number in range(12):
        container.checkpoint(woodfrog.directory / "images" / str(number), "--leave-running")

    assert verdict(container) == "ok\n"


@needs("command gcc")
@pytest.mark.parametrize("flags", [(), ("--background",)])
def test_who_runs_first_may_end_those_who_have_yet_to_run(
    woodfrog: Woodfrog, build: Build, flags: tuple[str, ...]
) -> None:
    container = woodfrog.run(compiled(woodfrog, build, "slaughter.c"))
    container.wait_for("ready")
    container = thaw_again(container, restore=flags)

    assert verdict(container) == "ok\n"


@needs("command gcc")
def test_a_forest_grows_again_from_a_template(woodfrog: Woodfrog, build: Build) -> None:
    container = woodfrog.run(compiled(woodfrog, build, "forest.c"))
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image)
    container.delete()

    assert verdict(woodfrog.restore_from_template(container.bundle, image)) == "ok\n"


def test_sqlite_commits_a_transaction_that_was_frozen(
    woodfrog: Woodfrog, chance: random.Random
) -> None:
    bundle = program(woodfrog, ["/usr/bin/python3", "/programs/transaction.py"])

    assert frozen_at_moments(woodfrog, bundle, chance) == "ok\n"


@needs("command node")
def test_node_goes_on_with_timers_workers_streams_and_files(
    woodfrog: Woodfrog, chance: random.Random
) -> None:
    bundle = program(woodfrog, ["/usr/bin/node", "/programs/events.js"])

    assert frozen_at_moments(woodfrog, bundle, chance) == "ok\n"


@needs("command go")
def test_go_goes_on_with_goroutines_timers_and_garbage(
    woodfrog: Woodfrog, chance: random.Random
) -> None:
    bundle = compiled_go(woodfrog, "goroutines.go")

    assert frozen_at_moments(woodfrog, bundle, chance) == "ok\n"


@needs("command go")
def test_go_that_makes_connections_all_the_time_goes_back_at_moments_of_chance(
    woodfrog: Woodfrog, chance: random.Random
) -> None:
    container = woodfrog.run(compiled_go(woodfrog, "calling.go"))
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    for _ in range(MOMENTS):
        time.sleep(chance.uniform(0, 0.5))
        woodfrog("rollback", f"--image-path={image}", container.name)

    assert verdict(container) == "ok\n"
