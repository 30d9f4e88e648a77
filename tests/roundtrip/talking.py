"""Programs of Python's that can be told to change, and to check whether all is as it was."""

from collections.abc import Callable
from pathlib import Path

from bundles import Bundle, bind
from containers import Container, Woodfrog

_SOURCES = Path(__file__).parent / "rollback"


def tell(container: Container, what: str) -> None:
    """Have the program do something."""
    (container.bundle.work / "told").write_text(what)
    (container.bundle.work / "told").rename(container.bundle.work / "change")


def talking(
    woodfrog: Woodfrog, program: str, change: Callable[[Bundle], None] = lambda bundle: None
) -> Container:
    """Start a program of Python's that can be told to change, and to check.

    `change` may change its bundle.
    """
    bundle = Bundle(woodfrog.directory / "bundle", ["python3", f"/programs/{program}"])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(_SOURCES, "/programs"))
    bundle.add_host_programs()
    bundle.add_capabilities("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL")
    change(bundle)
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    return container
