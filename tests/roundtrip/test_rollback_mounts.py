"""Containers in which programs have mounted something, set back in place."""

import pytest
from shells import WAIT, shell

from containers import Container, Woodfrog
from needs import needs

pytestmark = needs("root")

MADE = (
    "mkdir /tmp/m /tmp/bound; mount -t tmpfs -o size=1m none /tmp/m;"
    " mount --bind /tmp/m /tmp/bound; mount -t tmpfs none /dev/shm; umount /sys"
)


def mounting(woodfrog: Woodfrog, then: str, at_last: str = ":") -> Container:
    """Start a container that has mounts of its own, and does something when it is told to.

    `at_last` is what it does before it is frozen.
    """
    script = (
        f"{MADE}; for d in /tmp /tmp/m /dev/shm; do cd $d; echo kept > kept; echo old > changed;"
        " echo gone > gone; chown 7:8 gone; mkdir -p d/e; chmod 700 d; done; exec 5> held;"
        f" echo held >&5; {at_last}; : > /work/ready; {WAIT}; {then}; : > /work/changed;"
        " while :; do sleep 0.1; done"
    )
    bundle = shell(woodfrog, script)
    bundle.add_capabilities("CAP_SYS_ADMIN")
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running", "--sync=none")
    (bundle.work / "check").touch()
    container.wait_for("changed")
    (bundle.work / "check").unlink()
    return container


def seen(container: Container) -> str:
    """Return what there is, and what is mounted."""
    look = (
        "cd /; find /tmp /dev/shm -printf '%p %U:%G %m %s %T@\\n' | sort; cat /proc/self/mountinfo"
    )
    done = container.woodfrog("exec", container.name, "sh", "-c", look)
    return done.stdout


def test_files_are_set_back(woodfrog: Woodfrog) -> None:
    changes = (
        "for d in /tmp /tmp/m /dev/shm; do cd $d; echo new > changed; rm -rf gone held d;"
        " echo > more; done; echo new >&5; cd /"
    )
    container = mounting(woodfrog, changes)
    changed = seen(container)
    back = ("rollback", f"--image-path={woodfrog.directory / 'image'}", container.name)
    woodfrog(*back)

    before = seen(container)
    assert "more" not in before
    assert changed.count("/more ") == 4
    for place in ("/tmp", "/tmp/m", "/tmp/bound", "/dev/shm"):
        assert f"{place}/gone 7:8 644" in before
        assert f"{place}/d/e 0:0" in before
    shown = "cat /tmp/changed /tmp/m/changed /tmp/bound/changed /dev/shm/changed /dev/shm/held"
    done = woodfrog("exec", container.name, "sh", "-c", shown)
    assert done.stdout == 4 * "old\n" + "held\n"
    # And once more, from there.
    (container.bundle.work / "check").touch()
    (container.bundle.work / "changed").unlink()
    container.wait_for("changed")
    (container.bundle.work / "check").unlink()
    woodfrog(*back)
    assert seen(container) == before


@pytest.mark.parametrize(
    "change",
    [
        "umount /tmp/bound",
        "mount -t tmpfs none /tmp/d",
        "mount -o remount,size=2m /tmp/m",
        "umount /dev/shm; mount -t tmpfs -o mode=700 none /dev/shm",
    ],
)
def test_other_mounts_are_refused(change: str, woodfrog: Woodfrog) -> None:
    container = mounting(woodfrog, f"cd /; exec 5>&-; {change}")
    image = woodfrog.directory / "image"
    said = woodfrog("rollback", f"--image-path={image}", container.name, status=1).stderr
    assert "its mounts have changed since" in said
    assert not container.has_ended()


def test_what_is_seen_read_only_is_refused_if_it_has_changed(woodfrog: Woodfrog) -> None:
    """Others may write to it, by another mount."""
    container = mounting(
        woodfrog, "echo new > /tmp/bound/changed", "mount -o remount,bind,ro /tmp/m"
    )
    image = woodfrog.directory / "image"
    said = woodfrog("rollback", f"--image-path={image}", container.name, status=1).stderr
    assert "the file system at /tmp/m has changed since, and is mounted read-only there" in said
    assert "the container is running as before" in said
    assert not container.has_ended()
