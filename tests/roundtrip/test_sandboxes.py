"""What people make namespaces with: util-linux's tools, iproute2's, and bubblewrap."""

import subprocess
from collections.abc import Iterator

import pytest
from test_programs import restored

from bundles import Bundle, tmpfs
from containers import Woodfrog, verdict
from needs import needs, require

pytestmark = needs("root")

# Runs inside, and compares what it sees before and after.
LOOK = """\
look() {
    hostname; id -u; cat /proc/self/uid_map; cut -d ' ' -f 1-2 /proc/1/stat; echo $$ $PPID
    ls /tmp; wc -l < /proc/net/dev; cut -d ' ' -f 5- /proc/self/mountinfo | sort
}
before=$(look)
: > /work/ready
while [ ! -e /work/check ]; do sleep 0.02; done
after=$(look)
if [ "$before" = "$after" ]; then echo ok; else echo "$before"; echo; echo "$after"; fi > /work/out
"""
SANDBOXES = {
    "unshare": (
        "unshare --mount --pid --fork --mount-proc --uts --ipc --net --cgroup sh -c 'hostname in;"
        " mount -t tmpfs none /tmp; : > /tmp/mine; exec sh /work/look'"
    ),
    "unshare --user": (
        "unshare --user --map-root-user --mount --pid --fork --mount-proc --uts --ipc --net"
        " sh -c 'hostname in; mount -t tmpfs none /tmp; : > /tmp/mine; exec sh /work/look'"
    ),
    "unshare over files": (
        "sh -c ': > /tmp/below'; unshare --mount --pid --fork --mount-proc"
        " sh -c 'mount -t tmpfs none /tmp; : > /tmp/mine; exec sh /work/look'"
    ),
    "nsenter": (
        "unshare --pid --fork --mount --mount-proc sleep 1000 &"
        " until inner=$(pgrep -f '^sleep 1000'); do sleep 0.02; done;"
        " nsenter --target $inner --pid --mount sh /work/look; kill -9 $!"
    ),
    "bwrap": (
        "bwrap --bind / / --dev /dev --proc /proc --tmpfs /tmp --unshare-all --hostname in"
        " sh /work/look"
    ),
    "bwrap as a user": (
        "setpriv --reuid 1000 --regid 1000 --clear-groups bwrap --ro-bind / / --bind /work /work"
        " --dev /dev --proc /proc --tmpfs /tmp --unshare-all --hostname in sh /work/look"
    ),
    "bwrap beside another": (
        "bwrap --unshare-all --ro-bind / / --bind /work /work --proc /proc --dev /dev --tmpfs /tmp"
        " sh -c ': > /work/other; exec sleep 1000' &"
        " while [ ! -e /work/other ]; do sleep 0.02; done;"
        " bwrap --unshare-all --ro-bind / / --bind /work /work --proc /proc --dev /dev --tmpfs /tmp"
        " sh /work/look"
    ),
}


UNPRIVILEGED = ("unshare --user", "bwrap as a user", "bwrap beside another")


@pytest.mark.parametrize("name", SANDBOXES)
def test_a_sandbox_goes_on_as_it_was(name: str, woodfrog: Woodfrog) -> None:
    require(f"command {SANDBOXES[name].split()[0]}")
    bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sh", "-c", f"{SANDBOXES[name]}; :"])
    bundle.add_host_programs()
    bundle.add_capabilities("CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_NET_ADMIN", "CAP_SYS_PTRACE")
    expect_as_it_was(bundle, woodfrog)


@pytest.mark.parametrize("name", UNPRIVILEGED)
def test_a_sandbox_of_a_container_without_rights_does(name: str, woodfrog: Woodfrog) -> None:
    require(f"command {SANDBOXES[name].split()[0]}")
    bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sh", "-c", f"{SANDBOXES[name]}; :"])
    bundle.add_host_programs()
    bundle.add_capabilities("CAP_NET_ADMIN")  # bubblewrap sets its loopback device up
    expect_as_it_was(bundle, woodfrog)


def expect_as_it_was(bundle: Bundle, woodfrog: Woodfrog) -> None:
    (bundle.work / "look").write_text(LOOK)
    bundle.work.chmod(0o777)
    container = woodfrog.run(bundle)
    container.wait_for("ready")

    assert verdict(restored(container, 0)) == "ok\n"


@pytest.mark.parametrize("root", ["", "&& cd /tmp/root && pivot_root . . && umount -l ."])
def test_what_the_config_covers_is_shown_again_elsewhere(root: str, woodfrog: Woodfrog) -> None:
    """As podman mounts cgroups of version 1 twice, and systemd makes a root of all for services."""
    script = f"mkdir /tmp/root && mount --rbind / /tmp/root {root} && exec sh /work/look"
    bundle = Bundle(
        woodfrog.directory / "bundle", ["/bin/sh", "-c", f"unshare --mount sh -c '{script}'; :"]
    )
    bundle.add_host_programs()
    (bundle.rootfs / "mnt").mkdir()
    for size in ("1m", "2m", "3m"):
        bundle.add_mount(tmpfs("/mnt", f"size={size}"))
    bundle.add_capabilities("CAP_SYS_ADMIN")
    expect_as_it_was(bundle, woodfrog)


@pytest.fixture
def no_gaps(woodfrog: Woodfrog) -> Iterator[None]:
    """All numbers of file systems up to here are taken; what goes now is what comes next."""
    fill = "for i in $(seq 100); do mount -t tmpfs none .; done; echo filled; exec sleep 1000"
    command = ["unshare", "--mount", "sh", "-c", fill]
    with subprocess.Popen(command, cwd=woodfrog.directory, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"filled\n"
        yield
        process.kill()


@pytest.mark.usefixtures("no_gaps")
def test_a_file_system_is_not_taken_for_one_that_is_gone(woodfrog: Woodfrog) -> None:
    """Its number is that of one of the config's, which was unmounted elsewhere."""
    places = [f"/mnt/{number}" for number in range(8)]
    mounts = [f"mount -t tmpfs -o size=1m mine {place}" for place in places]
    script = "; ".join(["umount /dev/shm /tmp", *mounts, "exec sh /work/look"])
    bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sh", "-c", script])
    bundle.add_host_programs()
    for place in places:
        (bundle.rootfs / place[1:]).mkdir(parents=True)
    bundle.add_capabilities("CAP_SYS_ADMIN")
    expect_as_it_was(bundle, woodfrog)
