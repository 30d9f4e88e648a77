"""Files that change behind the back of a container, or where it can't reach them."""

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shells import WAIT, frozen, shell

from bundles import Bundle, bind
from containers import Container, Woodfrog, verdict
from needs import needs

pytestmark = needs("root")

PROGRAMS = Path(__file__).parent / "programs"
SCRIPT = """
exec 7< /outside/file
read first <&7
: > /work/ready
while [ ! -e /work/check ]; do sleep 0.02; done
read second <&7
echo "$first, $second, $(readlink /proc/self/fd/7)" > /work/out
"""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the host's with a file."""
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "file").write_text("one\ntwo\n")
    return directory


def reader(woodfrog: Woodfrog, outside: Path) -> Container:
    """Start a shell that is in the middle of reading the file, which it can't write."""
    bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sh", "-c", SCRIPT])
    bundle.add_host_programs()
    (bundle.rootfs / "outside").mkdir()
    bundle.add_mount(bind(outside, "/outside", "ro"))
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    return container


@pytest.fixture
def overlaid(woodfrog: Woodfrog) -> Iterator[Bundle]:
    """A bundle whose root is an overlay, as engines make them, and has the programs' directory."""
    bundle = Bundle(woodfrog.directory / "bundle", [])
    (bundle.rootfs / "programs").mkdir()
    layers = {name: woodfrog.directory / name for name in ("upper", "scratch")}
    for path in (bundle.rootfs / "frog", *layers.values()):
        path.mkdir()
    options = f"lowerdir={bundle.rootfs},upperdir={layers['upper']},workdir={layers['scratch']}"
    command = ["mount", "-t", "overlay", "overlay", "-o", options, str(bundle.rootfs)]
    subprocess.run(command, check=True)
    try:
        bundle.work = bundle.rootfs / "frog"
        bundle.process["env"].append("WORK=/frog")
        yield bundle
    finally:
        woodfrog.close()
        subprocess.run(["umount", str(bundle.rootfs)], check=True)


def thawed(container: Container, image: Path) -> Container:
    """Freeze a container and return the one that it goes on in."""
    container.checkpoint(image)
    container.wait()
    container.delete()
    return container.woodfrog.restore(container.bundle, image)


def test_a_file_deleted_on_a_read_only_mount_is_kept(woodfrog: Woodfrog, outside: Path) -> None:
    container = reader(woodfrog, outside)
    (outside / "file").unlink()

    once = thawed(container, woodfrog.directory / "image")
    twice = thawed(once, woodfrog.directory / "image of the restored")

    assert verdict(twice) == "one, two, /outside/file (deleted)\n"
    assert list(outside.iterdir()) == [], "the restore wrote to a read-only mount"


def test_a_file_replaced_on_a_read_only_mount_stays_the_old_one(
    woodfrog: Woodfrog, outside: Path
) -> None:
    container = reader(woodfrog, outside)
    (outside / "new").write_text("new\nnew\n")
    (outside / "new").rename(outside / "file")

    assert verdict(thawed(container, woodfrog.directory / "image")).startswith("one, two, ")


@needs("command gcc")
@pytest.mark.parametrize("name", ["inotify", "deleted_file", "deleted_directory"])
def test_files_of_an_overlay_are_kept(
    name: str, overlaid: Bundle, woodfrog: Woodfrog, build: Callable[..., Path]
) -> None:
    program = build(PROGRAMS / f"{name}.c")
    overlaid.process["args"] = ["/programs/" + program.name]
    overlaid.add_mount(bind(program.parent, "/programs"))
    container = woodfrog.run(overlaid)
    container.wait_for("ready")

    once = thawed(container, woodfrog.directory / "image")
    twice = thawed(once, woodfrog.directory / "image of the restored")

    assert verdict(twice) == "ok\n"


def test_a_file_whose_other_name_is_out_of_reach_is_refused(
    woodfrog: Woodfrog, outside: Path
) -> None:
    container = reader(woodfrog, outside)
    os.link(outside / "file", outside.parent / "other name")
    (outside / "file").unlink()

    refused = container.checkpoint(woodfrog.directory / "image", status=None)

    assert refused.status != 0
    assert "descriptor 7" in refused.stderr
    assert "another name" in refused.stderr
    assert "running as before" in refused.stderr
    assert verdict(container).startswith("one, two, ")


@needs("command gcc")
def test_a_limit_on_open_files_that_is_too_low_is_named(
    woodfrog: Woodfrog, build: Callable[..., Path]
) -> None:
    program = build(PROGRAMS / "many_descriptors.c")
    bundle = Bundle(woodfrog.directory / "bundle", ["/" + program.name])
    (bundle.rootfs / program.name).write_bytes(program.read_bytes())
    (bundle.rootfs / program.name).chmod(0o755)
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image)
    container.delete()

    limits = {resource.RLIMIT_NOFILE: 100}
    flags = (f"--image-path={image}", f"--bundle={bundle.directory}", "--detach")
    refused = woodfrog("restore", *flags, "bound", limits=limits, status=1)
    assert "ulimit -n" in refused.stderr
    assert verdict(woodfrog.restore(bundle, image)) == "ok\n"


@needs("file /proc/pressure/io")
def test_that_a_trigger_of_pressure_is_another_is_told(woodfrog: Woodfrog) -> None:
    trigger = r"exec 7<> /proc/pressure/io; printf 'some 500000 10000000\0' >&7"
    bundle = shell(woodfrog, f"{trigger}; : > /work/ready; {WAIT}")
    container = woodfrog.run(bundle)
    container.wait_for("ready")

    assert "not kept: 1 triggers of pressure" in woodfrog("check", container.name).stdout
    again = woodfrog.restore(bundle, frozen(container))
    assert "lost at the checkpoint: 1 triggers of pressure" in woodfrog.output(again.name)


def test_an_overlay_is_made_of_what_a_link_leads_to_inside(woodfrog: Woodfrog) -> None:
    layers = "lowerdir=/tmp/link/lower,upperdir=/tmp/link/upper,workdir=/tmp/link/work"
    script = (
        "mkdir /tmp/only-inside && cd /tmp/only-inside && mkdir lower upper work && cd /"
        " && echo found > /tmp/only-inside/lower/file && ln -s /tmp/only-inside /tmp/link"
        f" && mount -t overlay -o {layers} none /mnt && : > /work/ready; {WAIT}"
        "; cat /mnt/file > /work/out"
    )
    bundle = shell(woodfrog, script)
    bundle.add_capabilities("CAP_SYS_ADMIN")
    (bundle.rootfs / "mnt").mkdir(exist_ok=True)
    container = woodfrog.run(bundle)
    container.wait_for("ready")

    restored = woodfrog.restore(bundle, frozen(container))

    (bundle.work / "check").touch()
    assert verdict(restored) == "found\n"
