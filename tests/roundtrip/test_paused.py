"""Containers that are paused when they are frozen."""

import compileall
import operator
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

from shells import WAIT, frozen, shell

from bundles import Bundle, bind
from containers import REPOSITORY, Container, Woodfrog, eventually
from needs import needs

pytestmark = needs("root")


def test_a_paused_container_can_be_frozen_and_goes_on_when_thawed(woodfrog: Woodfrog) -> None:
    container = woodfrog.run(shell(woodfrog, f": > /work/ready; {WAIT}"))
    container.wait_for("ready")
    woodfrog("pause", container.name)
    image = frozen(container)

    restored = woodfrog.restore(container.bundle, image)
    (restored.bundle.work / "check").touch()

    assert restored.wait() == 0


def test_a_paused_container_that_is_left_running_stays_paused(woodfrog: Woodfrog) -> None:
    container = woodfrog.run(shell(woodfrog, f": > /work/ready; {WAIT}; : > /work/out"))
    container.wait_for("ready")
    woodfrog("pause", container.name)
    container.checkpoint(woodfrog.directory / "image", "--leave-running")

    assert container.state()["status"] == "paused"
    (container.bundle.work / "check").touch()
    time.sleep(0.1)
    assert not (container.bundle.work / "out").exists()
    woodfrog("resume", container.name)
    assert container.wait() == 0


@needs("command gcc")
def test_not_one_instruction_of_a_paused_container_runs(
    woodfrog: Woodfrog, build: Callable[..., Path]
) -> None:
    program = build(Path(__file__).parent / "busy.c")
    bundle = Bundle(woodfrog.directory / "bundle", [f"/programs/{program.name}"])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))
    file = bundle.work / "counts"
    file.write_bytes(bytes(16))

    def counts() -> tuple[int, ...]:
        return struct.unpack("2Q", file.read_bytes())

    container = woodfrog.run(bundle)
    eventually(lambda: all(counts()), "both threads count")
    woodfrog("pause", container.name)
    before = counts()
    container.checkpoint(woodfrog.directory / "first", "--leave-running")
    assert container.state()["status"] == "paused"
    assert counts() == before
    # Python itself would cut the modules that it compiles.
    compileall.compile_dir(REPOSITORY / "src", quiet=1)
    limits = {resource.RLIMIT_FSIZE: 8192}
    failed = container.checkpoint(woodfrog.directory / "none", limits=limits, status=1)
    assert "the container is paused as before" in failed.stderr
    assert container.state()["status"] == "paused"
    assert counts() == before
    image = frozen(container)
    assert counts() == before

    restored = woodfrog.restore(bundle, image)
    eventually(lambda: all(map(operator.gt, counts(), before)), "both threads count on")
    restored.kill()


@needs("command gcc")
def test_a_paused_wait_has_the_time_that_was_left(
    woodfrog: Woodfrog, build: Callable[..., Path]
) -> None:
    program = build(Path(__file__).parent / "patient.c")
    bundle = Bundle(woodfrog.directory / "bundle", [f"/programs/{program.name}"])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))

    def left(container: Container) -> float:
        """Return for how many seconds it waits in poll(2), or 0 if it doesn't."""
        call = Path(f"/proc/{container.init}/syscall").read_text().split()
        return int(call[3], 16) / 1000 if call[0] == "7" else 0

    container = woodfrog.run(bundle)
    total = eventually(lambda: left(container), "it waits")
    began = time.monotonic()
    time.sleep(1)  # longer than all that follows, or nothing is shown
    woodfrog("pause", container.name)
    passed = time.monotonic() - began
    container.checkpoint(woodfrog.directory / "first", "--leave-running")
    restored = woodfrog.restore(bundle, frozen(container))
    assert total - 60 < eventually(lambda: left(restored), "it waits on") < total - passed
    restored.kill()
