"""No container keeps whoever works on it waiting for ever."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from shells import shell

from bundles import Bundle, bind
from containers import Container, Woodfrog
from needs import needs

pytestmark = needs("root", "command gcc")
_SERVER = Path(__file__).parent / "refused" / "fuse.c"


@pytest.fixture(params=["mounted", "unmounted"])
def serving(
    request: pytest.FixtureRequest, woodfrog: Woodfrog, build: Callable[..., Path]
) -> Container:
    """A container with a file of a file system that a program of its own serves."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("this kernel has no FUSE")
    program = build(_SERVER)
    arguments = ["detach"] if request.param == "unmounted" else []
    bundle = Bundle(woodfrog.directory / "bundle", ["/programs/" + program.name, *arguments])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))
    bundle.add_capabilities("CAP_SYS_ADMIN")
    device = {"type": "c", "major": 10, "minor": 229}
    bundle.config["linux"]["devices"] = [device | {"path": "/dev/fuse"}]
    bundle.config["linux"]["resources"]["devices"] = [device | {"allow": True, "access": "rwm"}]
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    return container


def test_nothing_is_asked_of_a_file_system_whose_server_is_held(serving: Container) -> None:
    woodfrog, image = serving.woodfrog, serving.woodfrog.directory / "image"
    for command in (
        ("check",),
        ("checkpoint", f"--image-path={image}"),
        ("checkpoint", "--leave-running", f"--image-path={image}"),
        ("checkpoint", "--pre-dump", f"--image-path={image}"),
    ):
        done = woodfrog(*command, serving.name, status=1)
        said = done.stdout + done.stderr
        assert "FUSE" in said or "/dev/fuse" in said
        assert "unmount it, and close its files, first" in said
    assert not serving.has_ended()
    assert serving.state()["status"] == "running"


@pytest.mark.parametrize(
    "made",
    [
        "mkfifo /tmp/program; chmod 755 /tmp/program",
        "printf '#!/tmp/fifo' > /tmp/program; mkfifo /tmp/fifo; chmod 755 /tmp/program /tmp/fifo",
        "mkfifo /tmp/passwd; mount --bind /tmp/passwd /etc/passwd; cp /bin/true /tmp/program",
        "mount --bind /dev/zero /etc/passwd; cp /bin/true /tmp/program",
    ],
    ids=["program", "interpreter", "passwd", "endless-passwd"],
)
def test_exec_opens_no_file_that_keeps_it(woodfrog: Woodfrog, made: str) -> None:
    bundle = shell(woodfrog, f"({made}) && : > /work/ready; sleep 1000")
    bundle.add_capabilities("CAP_SYS_ADMIN")
    bundle.process["env"] = [one for one in bundle.process["env"] if not one.startswith("HOME=")]
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    done = woodfrog("exec", container.name, "/tmp/program", status=None)
    assert done.status == (0 if "passwd" in made else 255), done.stderr
    woodfrog("pause", container.name)
    woodfrog("resume", container.name)
