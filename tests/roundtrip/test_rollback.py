"""Running containers that go back to an image in place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from changing import MANY, OLDER, SOURCE, Changing, holders

from bundles import Bundle, bind, mount
from containers import Container, Woodfrog, verdict
from needs import needs

SOURCES = Path(__file__).parent / "rollback"

pytestmark = needs("root", "command gcc")


@pytest.fixture
def changing(woodfrog: Woodfrog, build: Callable[..., Path]) -> Changing:
    return Changing(woodfrog, build(SOURCE))


def roll_back(changing: Changing, number: int, *flags: str, **how: Any) -> dict[str, Any]:
    """Set it back, and return the figures."""
    image = f"--image-path={changing.image(number)}"
    told = changing.woodfrog("rollback", image, "--stats", *flags, changing.container.name, **how)
    found: dict[str, Any] = json.loads(told.stdout)
    return found


@pytest.mark.parametrize("how", ["noted", "compared", "older kernel"])
def test_memory_goes_back_again_and_again(how: str, changing: Changing) -> None:
    environment = {"environment": OLDER} if how == "older kernel" else {}
    track = ("--track-changes",) if how == "noted" else ()
    changing.go_to(1)
    init = changing.container.init
    changing.save(0, *track, **environment)
    for goal in (2, 4):
        changing.go_to(goal)
        (changing.bundle.work / "at1").unlink()
        changing.aim_at(1)
        found = roll_back(changing, 0, **environment)
        changing.container.wait_for("at1")
        assert found["written_bytes"] < MANY / 3
        assert (found["looked_at_bytes"] < MANY / 3) == (how == "noted")
    assert changing.container.init == init
    assert len(holders()) == (how == "noted")
    assert verdict(changing.container) == "ok\n"


@pytest.fixture
def eventful(woodfrog: Woodfrog, build: Callable[..., Path]) -> Container:
    """Start a program in which much can happen."""
    program = build(SOURCES / "eventful.c")
    bundle = Bundle(woodfrog.directory / "bundle", ["/programs/" + program.name])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))
    bundle.add_mount(mount("/dev/shm", "tmpfs"))
    bundle.add_capabilities("CAP_SYS_ADMIN")
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    return container


def test_what_has_happened_since_is_undone(eventful: Container, woodfrog: Woodfrog) -> None:
    image = woodfrog.directory / "image"
    eventful.checkpoint(image, "--leave-running", "--sync=none")
    for _ in range(2):
        (eventful.bundle.work / "change").touch()
        eventful.wait_for("changed")
        for name in ("change", "changed"):
            (eventful.bundle.work / name).unlink()
        woodfrog("--debug", "rollback", f"--image-path={image}", eventful.name)
    assert verdict(eventful) == "ok\n"


def test_without_a_rollback_the_program_tells_that_much_has_happened(eventful: Container) -> None:
    (eventful.bundle.work / "change").touch()
    eventful.wait_for("changed")
    (eventful.bundle.work / "check").touch()
    assert eventful.wait() != 0
    said = (eventful.bundle.work / "out").read_text()
    for what in ("position", "counter", "descriptors", "threads", "heap", "name", "a file that"):
        assert what in said
