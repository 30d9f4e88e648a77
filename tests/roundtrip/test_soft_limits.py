"""A restore takes nothing from the soft limits of the command that does it."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from shells import frozen, shell

from bundles import Bundle, bind
from containers import Container, Woodfrog, verdict
from needs import needs

PROGRAMS = Path(__file__).parent / "programs"
Build = Callable[..., Path]

pytestmark = needs("root", "command gcc")


@contextmanager
def lowered(which: int, soft: int) -> Iterator[None]:
    """Lower a soft limit of ours, which commands have from us, for a moment."""
    before = resource.getrlimit(which)
    resource.setrlimit(which, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, before)


def prepared(bundle: Bundle, program: Path) -> None:
    """Have a program in a container."""
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))
    bundle.add_capabilities("CAP_SETUID")


def begun(woodfrog: Woodfrog, build: Build, source: str, *arguments: str) -> Container:
    """Start a program as a container's first process."""
    program = build(PROGRAMS / source)
    bundle = Bundle(woodfrog.directory / "bundle", [f"/programs/{program.name}", *arguments])
    prepared(bundle, program)
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    return container


def test_locked_memory_comes_back(woodfrog: Woodfrog, build: Build) -> None:
    container = begun(woodfrog, build, "memory_limits.c", "locked")
    image = frozen(container)

    with lowered(resource.RLIMIT_MEMLOCK, 4096):
        restored = woodfrog.restore(container.bundle, image)

    assert verdict(restored) == "ok\n"


def test_a_large_address_space_comes_back(woodfrog: Woodfrog, build: Build) -> None:
    container = begun(woodfrog, build, "reserved.c")
    image = frozen(container)

    with lowered(resource.RLIMIT_AS, 1 << 30):
        restored = woodfrog.restore(container.bundle, image)

    assert verdict(restored) == "ok\n"


def test_locked_memory_of_what_was_executed_comes_back(woodfrog: Woodfrog, build: Build) -> None:
    program = build(PROGRAMS / "memory_limits.c")
    bundle = shell(woodfrog, "until [ -s /work/out ]; do sleep 0.02; done")
    prepared(bundle, program)
    container = woodfrog.run(bundle)
    woodfrog("exec", "--detach", container.name, f"/programs/{program.name}", "locked")
    container.wait_for("ready")
    image = frozen(container)

    with lowered(resource.RLIMIT_MEMLOCK, 4096):
        restored = woodfrog.restore(bundle, image)

    assert verdict(restored) == "ok\n"


@pytest.mark.parametrize("most", [1 << 20, 8 << 20], ids=["less", "more"])
def test_the_new_config_s_limits_hold(most: int, woodfrog: Woodfrog, build: Build) -> None:
    bundle = shell(
        woodfrog, "until [ -e /work/check ]; do sleep 0.02; done; ulimit -Hl > /work/out"
    )
    container = woodfrog.run(bundle)
    image = frozen(container)
    bundle.process["rlimits"] = [{"type": "RLIMIT_MEMLOCK", "soft": 4096, "hard": most}]

    with lowered(resource.RLIMIT_MEMLOCK, 4096):
        restored = woodfrog.restore(bundle, image)

    assert verdict(restored) == f"{most >> 10}\n"
