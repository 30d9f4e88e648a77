"""What goes back to an image only together with what it is tied to."""

import os
import subprocess
from pathlib import Path

import pytest

from bundles import Bundle, bind, mount
from containers import Container, Woodfrog, verdict
from needs import needs
from overlays import OverlayRoot

SOURCES = Path(__file__).parent / "rollback"

pytestmark = needs("root")


def changed(
    woodfrog: Woodfrog, bundle: Bundle, *flags: str, change: str = ""
) -> tuple[Container, Path]:
    """Have a program run on after a checkpoint, and make a change; return it and the image."""
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none", *flags)
    tell(bundle, change)
    container.wait_for("changed")
    (bundle.work / "change").unlink(missing_ok=True)
    return container, image


def tell(bundle: Bundle, what: str) -> None:
    """Write first, then name: it may be read right then."""
    (bundle.work / "told").write_text(what)
    (bundle.work / "told").rename(bundle.work / "change")


def test_all_names_of_a_file_stay_one_though_no_time_tells_of_a_change(woodfrog: Woodfrog) -> None:
    script = """
        cd /tmp; echo then > one; ln one two; exec 5<> one
        : > /work/ready
        while [ ! -e /work/change ]; do :; done
        touch -r one /work/stamp; echo now! > one; touch -r /work/stamp one
        : > /work/changed
        while :; do :; done
    """
    bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sh", "-c", script])
    bundle.add_host_programs()
    container, image = changed(woodfrog, bundle)

    woodfrog("rollback", f"--image-path={image}", container.name)

    place = Path(f"/proc/{container.init}/root/tmp")
    opened = os.stat(f"/proc/{container.init}/fd/5")
    for name in ("one", "two"):
        assert (place / name).read_text() == "then\n"
        assert os.path.samestat((place / name).stat(), opened)


@pytest.mark.parametrize("change", ["read the first", "read the second", "close the first"])
def test_sockets_of_one_port_each_have_their_own_again(change: str, woodfrog: Woodfrog) -> None:
    go_and_come_back(woodfrog, "shared_ports.py", change)


def test_a_process_gets_its_last_descriptors_again(woodfrog: Woodfrog) -> None:
    go_and_come_back(woodfrog, "last_ones.py", "close")


def go_and_come_back(woodfrog: Woodfrog, program: str, change: str) -> None:
    """Have a program make a change and set it back; it must find all as it was."""
    bundle = Bundle(woodfrog.directory / "bundle", ["python3", f"/programs/{program}"])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(SOURCES, "/programs"))
    bundle.add_host_programs()
    bundle.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024}]
    container, image = changed(woodfrog, bundle, change=change)

    woodfrog("rollback", f"--image-path={image}", container.name)

    tell(bundle, "check")
    assert verdict(container) == "ok\n"


def test_files_are_emptied_before_others_take_their_room(woodfrog: Woodfrog) -> None:
    script = """
        cd /small; head -c 3M /dev/zero | tr "\\0" x > first; : > second
        : > /work/ready
        while [ ! -e /work/change ]; do :; done
        mv first other; : > first; mv other second
        : > /work/changed
        while :; do :; done
    """
    bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sh", "-c", script])
    bundle.add_host_programs()
    bundle.add_mount(mount("/small", "tmpfs", options=("size=4m",)))
    container, image = changed(woodfrog, bundle)

    woodfrog("rollback", f"--image-path={image}", container.name)

    place = Path(f"/proc/{container.init}/root/small")
    assert (place / "first").read_bytes() == b"x" * (3 << 20)
    assert (place / "second").read_bytes() == b""


def test_a_root_without_room_is_refused_before_anything_is_touched(woodfrog: Woodfrog) -> None:
    lower = woodfrog.directory / "lower"
    (lower / "files").mkdir(parents=True)
    script = """
        head -c 3M /dev/zero | tr "\\0" x > /files/large
        : > /work/ready
        while [ ! -e /work/change ]; do :; done
        rm /files/large
        : > /work/changed
        while :; do :; done
    """
    root = OverlayRoot(woodfrog.directory / "overlay", lower, ["/bin/sh", "-c", script])
    try:
        subprocess.run(["mount", "-o", "remount,size=8m", str(root.base)], check=True)
        container, image = changed(woodfrog, root.bundle, "--with-rootfs")
        (root.base / "others").write_bytes(b"y" * (6 << 20))

        said = woodfrog("rollback", f"--image-path={image}", container.name, status=1).stderr

        assert "KiB free" in said
        assert "running as before" in said
        (root.base / "others").unlink()
        woodfrog("rollback", f"--image-path={image}", container.name)
        assert (root.bundle.rootfs / "files/large").stat().st_size == 3 << 20
        container.delete()
    finally:
        root.close()
