"""An image has other code at the paths of our modules: nobody of us loads it in the container."""

import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from bundles import Bundle
from containers import REPOSITORY, Container, Woodfrog
from needs import needs
from woodfrog.cli import main

pytestmark = needs("root", "command unshare")

CODE = """import os
os.close(os.open("/work/loaded", os.O_WRONLY | os.O_CREAT))
raise ImportError("this is not woodfrog")
"""
PROFILE = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"]}
SCHEDULING = {"scheduler": {"policy": "SCHED_BATCH", "nice": 1}}


def lay_traps(rootfs: Path) -> None:
    """Put code at the paths of all modules that there are, of ours and of Python."""
    library = Path(sysconfig.get_path("stdlib"))
    ours = REPOSITORY / "src" / "woodfrog"
    for directory in (ours, library, library / "encodings", Path(sys.prefix) / "lib"):
        for module in directory.rglob("*.py") if directory == ours else directory.glob("*.py"):
            trap = rootfs / module.relative_to("/")
            trap.parent.mkdir(parents=True, exist_ok=True)
            trap.write_text(CODE)


@pytest.fixture
def trapped(woodfrog: Woodfrog) -> Callable[[str], Container]:
    def run(script: str) -> Container:
        bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sh", "-c", script])
        bundle.add_host_programs()
        lay_traps(bundle.rootfs)
        mounts = bundle.config["mounts"]
        bundle.config["mounts"] = [one for one in mounts if one["destination"] != "/tmp"]
        bundle.process.update(SCHEDULING)
        bundle.config["linux"]["seccomp"] = PROFILE
        bundle.add_capabilities("CAP_SYS_ADMIN")
        bundle.save()
        container = woodfrog.run(bundle)
        container.wait_for("ready")
        woodfrog("exec", container.name, "test", "-f", main.__file__)
        return container

    return run


def loaded(container: Container) -> bool:
    """Tell whether somebody has loaded a trap."""
    return (container.bundle.work / "loaded").exists()


def test_none_is_loaded_by_create_and_exec(
    trapped: Callable[[str], Container], woodfrog: Woodfrog
) -> None:
    container = trapped("touch /work/ready; exec sleep 1000")
    assert not loaded(container)
    woodfrog("exec", container.name, "touch", "/work/executed")
    woodfrog("exec", container.name, "/nonexistent", status=255)
    assert (container.bundle.work / "executed").exists()
    assert not loaded(container)


def test_none_is_loaded_by_a_look_at_its_mounts(
    trapped: Callable[[str], Container], woodfrog: Woodfrog
) -> None:
    script = (
        "mkdir /tmp/a /tmp/b; mount -t tmpfs none /tmp/a; mount --bind /usr /tmp/b;"
        " touch /tmp/a/file; unshare --mount sh -c 'mount -t tmpfs none /tmp/b;"
        " touch /tmp/b/other /work/ready; exec sleep 1000'"
    )
    container = trapped(script)
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running")
    container.checkpoint(woodfrog.directory / "second")
    assert not loaded(container)
    bundle = container.bundle
    container.delete()
    container = woodfrog.restore(bundle, image)
    woodfrog("exec", container.name, "test", "-f", "/tmp/a/file")
    assert not loaded(container)
