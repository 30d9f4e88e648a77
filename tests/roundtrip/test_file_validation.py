"""Files that stay where they are must be as they were; a changed one is named."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bundles import Bundle
from containers import Container, Woodfrog
from needs import needs

pytestmark = needs("root")

WAITER = r"""
#include <fcntl.h>
#include <unistd.h>
int main(void) {
	close(open("/work/ready", O_CREAT | O_WRONLY, 0644));
	while (access("/work/check", F_OK) != 0)
		usleep(10000);
	close(open("/work/out", O_CREAT | O_WRONLY, 0644));
}
"""
# It reads one file, writes to another, and waits.
SCRIPT = (
    "exec 3< /work/read 4>> /work/written; : > /work/ready;"
    " while [ ! -e /work/check ]; do sleep 0.02; done; : > /work/out"
)
CHANGED = "bytes at the checkpoint, and has"


def frozen(container: Container) -> Path:
    """Freeze a container that is ready, delete it, and return its image."""
    container.wait_for("ready")
    image = container.woodfrog.directory / "image"
    container.checkpoint(image)
    container.wait()
    container.delete()
    return image


def refusal(bundle: Bundle, woodfrog: Woodfrog, image: Path, *flags: str) -> str:
    """Return why a created container can't become the image's; it waits on."""
    name = f"wf-waits-{os.getpid()}"
    bundle.config["linux"]["cgroupsPath"] = f"/{name}"
    bundle.save()
    woodfrog.names.append(name)
    output = woodfrog.directory / "created.output"
    woodfrog("create", "-b", str(bundle.directory), name, output=output)
    done = woodfrog("restore", f"--image-path={image}", "--detach", *flags, name, status=1)
    assert '"created"' in woodfrog("state", name).stdout
    woodfrog("delete", "--force", name)
    assert "--file-validation=none" in done.stderr
    return done.stderr


def goes_on(bundle: Bundle, woodfrog: Woodfrog, image: Path, *flags: str) -> None:
    """Restore an image, and see that it ends well."""
    restored = woodfrog.restore(bundle, image, *flags)
    (bundle.work / "check").touch()
    assert restored.wait() == 0
    (bundle.work / "check").unlink()
    (bundle.work / "out").unlink()


@pytest.fixture
def programs(woodfrog: Woodfrog, build: Callable[..., Path]) -> list[bytes]:
    """Two builds of a program that differ in nothing but their build ids."""
    source = woodfrog.directory / "waiter.c"
    source.write_text(WAITER)
    flags = [f"-Wl,--build-id=0x{digit * 40}" for digit in "12"]
    made = [build(source, flag).read_bytes() for flag in flags]
    assert len(made[0]) == len(made[1])
    assert made[0] != made[1]
    return made


def test_a_program_of_another_build_is_named(woodfrog: Woodfrog, programs: list[bytes]) -> None:
    bundle = Bundle(woodfrog.directory / "bundle", ["/work/program"])
    program = bundle.work / "program"

    def put(contents: bytes) -> None:
        program.unlink(missing_ok=True)
        program.write_bytes(contents)
        program.chmod(0o755)

    put(programs[0])
    image = frozen(woodfrog.run(bundle))

    put(programs[0])  # at another time, as another inode
    goes_on(bundle, woodfrog, image)
    put(programs[1])
    assert "/work/program is another build" in refusal(bundle, woodfrog, image)
    goes_on(bundle, woodfrog, image, "--file-validation=size")
    put(programs[0] + b"\0")
    for flags in ((), ("--file-validation=size",)):
        told = refusal(bundle, woodfrog, image, *flags)
        assert f"/work/program had {len(programs[0])} {CHANGED} {len(programs[0]) + 1}" in told
    goes_on(bundle, woodfrog, image, "--file-validation=none")


def test_open_files_that_have_changed_are_all_named(woodfrog: Woodfrog) -> None:
    bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sh", "-c", SCRIPT])
    bundle.add_host_programs()
    for name in ("read", "written"):
        (bundle.work / name).write_text("twelve bytes")
    image = frozen(woodfrog.run(bundle))

    # What the container itself writes to may have become longer.
    (bundle.work / "written").write_text("twelve bytes, and more")
    goes_on(bundle, woodfrog, image)
    (bundle.work / "read").write_text("twelve bytes, and more")
    assert f"/work/read had 12 {CHANGED} 22" in refusal(bundle, woodfrog, image)
    (bundle.work / "written").write_text("less")
    told = refusal(bundle, woodfrog, image)
    assert f"/work/read had 12 {CHANGED} 22" in told
    assert f"also /work/written had 12 {CHANGED} 4" in told
    goes_on(bundle, woodfrog, image, "--file-validation=none")


def test_files_that_the_image_brings_need_not_be_there(woodfrog: Woodfrog) -> None:
    script = SCRIPT.replace("/work/read ", "/tmp/read ")
    bundle = Bundle(
        woodfrog.directory / "bundle", ["/bin/sh", "-c", f"echo new > /tmp/read; {script}"]
    )
    bundle.add_host_programs()
    image = frozen(woodfrog.run(bundle))
    goes_on(bundle, woodfrog, image)
