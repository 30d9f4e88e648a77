"""Programs of Python's that can be told to change, and to check whether all is as it was."""

from collections.abc import Callable
from pathlib import Path

from bundles import Bundle, bind
from containers import Container, Woodfrog

_SOURCES = Path(__file__).parent / "rollback"


def tell(container: Container, what: str) -> None:
    """Have the program do something: written first, then named, as it may be read right then."""
    (container.bundle.work / "told").write_text(what)
    (container.bundle.work / "told").rename(container.bundle.work / "change")


def set_back_after(change: str, container: Container, image: Path) -> None:
    """Have the program do something, and undo that."""
    tell(container, change)
    container.wait_for("changed")
    (container.bundle.work / "changed").unlink()
    container.woodfrog("rollback", f"--image-path={image}", container.name)


def prepared(woodfrog: Woodfrog, program: str, *how: str) -> Bundle:
    """Return the bundle of a program of Python's that can be told to change, and to check."""
    bundle = Bundle(woodfrog.directory / "bundle", ["python3", f"/programs/{program}", *how])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(_SOURCES, "/programs"))
    bundle.add_host_programs()
    bundle.add_capabilities("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL")
    return bundle


def talking(
    woodfrog: Woodfrog, program: str, change: Callable[[Bundle], None] = lambda bundle: None
) -> Container:
    """Start one; `change` may change its bundle."""
    bundle = prepared(woodfrog, program)
    change(bundle)
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    return container
