"""Servers that others know, and their clients, which go back to an image in place."""

import shutil
from pathlib import Path

import pytest
from real_programs import program

from bundles import bind
from containers import Container, Woodfrog, verdict
from needs import needs

TOLD = Path(__file__).parent.parent / "roundtrip/rollback"
CASES = {
    "dbus": ("dbus-daemon", ("call", "end the client")),
    "multiprocessing": ("python3", ("count", "work", "from a thread", "end the worker")),
    "asyncio": ("python3", ("talk", "end a client", "connect")),
    "redis": ("redis-server", ("run it", "be others", "end the client")),
}

pytestmark = needs("root")


def tell(container: Container, what: str) -> None:
    """Write first, then name: it may be read right then."""
    (container.bundle.work / "told").write_text(what)
    (container.bundle.work / "told").rename(container.bundle.work / "change")


@pytest.mark.parametrize(("name", "command", "changes"), [(k, *v) for k, v in CASES.items()])
def test_a_server_and_its_clients_go_back(
    name: str, command: str, changes: tuple[str, ...], woodfrog: Woodfrog
) -> None:
    if shutil.which(command) is None:
        pytest.skip(f"there is no {command}")
    bundle = program(woodfrog, ["python3", "/programs/servers.py", name])
    bundle.add_mount(bind(TOLD, "/told"))
    (bundle.rootfs / "told").mkdir()
    bundle.process["env"].append("PYTHONPATH=/told")
    container = woodfrog.run(bundle)
    container.wait_for("ready", within=60)
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    for change in changes:
        tell(container, change)
        container.wait_for("changed")
        (bundle.work / "changed").unlink()
        woodfrog("rollback", f"--image-path={image}", container.name)
    tell(container, "check")
    assert verdict(container) == "ok\n"
