"""Signals that wait go back to an image where fewer may wait by now (RLIMIT_SIGPENDING)."""

from pathlib import Path

from bundles import Bundle, bind
from containers import Container, Woodfrog, verdict
from needs import needs
from woodfrog.resources import limits

SOURCES = Path(__file__).parent / "rollback"

pytestmark = needs("root", "command python3")


def changed(woodfrog: Woodfrog, *arguments: str) -> tuple[Container, Path]:
    """Have the program save what waits, and take it; return it and the image."""
    bundle = Bundle(
        woodfrog.directory / "bundle", ["python3", "/programs/full_signals.py", *arguments]
    )
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(SOURCES, "/programs"))
    bundle.add_host_programs()
    bundle.add_capabilities("CAP_SETUID")
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    (bundle.work / "change").touch()
    container.wait_for("changed")
    return container, image


def test_signals_come_back_where_fewer_may_wait_by_now(woodfrog: Woodfrog) -> None:
    container, image = changed(woodfrog)

    woodfrog("rollback", f"--image-path={image}", container.name)

    assert verdict(container) == "ok\n"


def test_more_signals_than_may_wait_are_refused_before_anything_is_touched(
    woodfrog: Woodfrog,
) -> None:
    container, image = changed(woodfrog, "hard")
    fits = limits.may_exceed_hard()

    done = woodfrog("rollback", f"--image-path={image}", container.name, status=None)

    assert done.status == (0 if fits else 1)
    if fits:
        assert verdict(container) == "ok\n"
        return
    assert "process 1 (python3) is to get 10 signals back" in done.stderr
    assert "its hard limit is 3 (RLIMIT_SIGPENDING)" in done.stderr
    assert "the container is running as before" in done.stderr
    assert verdict(container).endswith("[]\n")
