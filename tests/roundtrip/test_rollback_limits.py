"""Memory goes back to an image where limits leave no room for more (RLIMIT_AS and its like)."""

from collections.abc import Callable
from pathlib import Path

import pytest
from test_user_ids import give_user_namespace

from bundles import Bundle, bind
from containers import Container, Woodfrog, verdict
from needs import needs
from woodfrog.resources import limits

SOURCES = Path(__file__).parent / "rollback"
Build = Callable[..., Path]

pytestmark = needs("root", "command gcc")


def changed(
    woodfrog: Woodfrog, build: Build, *arguments: str, within: bool = False
) -> tuple[Container, Path]:
    """Have a program save what it has used up, and use other memory; return it and the image.

    It may be `within` a user namespace, and have a right there that counts outside only.
    """
    program = build(SOURCES / "near_limits.c")
    bundle = Bundle(woodfrog.directory / "bundle", ["/programs/" + program.name, *arguments])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))
    if within:
        give_user_namespace(bundle)
        bundle.add_capabilities("CAP_IPC_LOCK")
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    (bundle.work / "change").touch()
    container.wait_for("changed")
    (bundle.work / "change").unlink()
    (bundle.work / "changed").unlink()
    return container, image


@pytest.mark.parametrize("what", ["space", "data", "locked", "space roomy", "data roomy"])
def test_memory_comes_back_where_there_is_no_room_for_more(
    what: str, woodfrog: Woodfrog, build: Build
) -> None:
    container, image = changed(woodfrog, build, *what.split())

    woodfrog("rollback", f"--image-path={image}", container.name)

    assert verdict(container) == "ok\n"


def test_memory_is_locked_again_in_a_user_namespace(woodfrog: Woodfrog, build: Build) -> None:
    container, image = changed(woodfrog, build, "locked", within=True)

    woodfrog("rollback", f"--image-path={image}", container.name)

    assert verdict(container) == "ok\n"


@pytest.mark.parametrize(
    ("what", "limit"), [("space", "RLIMIT_AS"), ("data", "RLIMIT_DATA")], ids=["space", "data"]
)
def test_a_process_that_may_not_have_what_it_takes_to_make_it_is_refused(
    what: str, limit: str, woodfrog: Woodfrog, build: Build
) -> None:
    container, image = changed(woodfrog, build, what, "hard")
    fits = limits.may_exceed_hard()

    done = woodfrog("rollback", f"--image-path={image}", container.name, status=None)

    assert done.status == (0 if fits else 1)
    if not fits:
        assert "making process 2 again needs" in done.stderr
        assert f"bytes of the memory that {limit} is about" in done.stderr
        assert "the container is running as before" in done.stderr
        assert "it is not set back" in verdict(container)
    else:
        assert verdict(container) == "ok\n"
