"""Buildah with woodfrog as its runtime: steps of a build, and commands in a working container."""

import os
import subprocess
from pathlib import Path

import pytest

from busybox import make_rootfs
from containers import REPOSITORY, Done
from needs import needs

pytestmark = needs("root", "command buildah", "command busybox", "command iptables")

RUNTIME = f"--runtime={REPOSITORY}/woodfrog"
# The limits are none that a machine without CAP_SYS_RESOURCE couldn't set.
CONFIG = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[network]
network_config_dir = "{directory}/networks"
[engine]
cgroup_manager = "cgroupfs"
"""
DOCKERFILE = """\
FROM scratch
ADD rootfs.tar /
ENV PATH=/bin WHO=frog
COPY file /srv/file
RUN echo "$WHO $(id -u) $(cat /srv/file)" > /srv/made
USER frog
RUN touch /srv/denied || id -un > /tmp/user
"""


class Buildah:
    """The command line with directories of its own, in a mount and network namespace of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "containers.conf").write_text(CONFIG.format(directory=directory))

    def __call__(self, *words: str, status: int = 0) -> Done:
        """Run one command and demand its exit status."""
        command = ["unshare", "--net", "--mount", "--propagation=private", "buildah"]
        command += [f"--root={self.directory}/root", f"--runroot={self.directory}/run"]
        done = subprocess.run(
            [*command, "--storage-driver=vfs", *words],
            env=os.environ | {"CONTAINERS_CONF": f"{self.directory}/containers.conf"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        result = Done(done.returncode, done.stdout, done.stderr)
        assert done.returncode == status, f"buildah {' '.join(words)}: {result}"
        return result


@pytest.fixture
def buildah(tmp_path: Path) -> Buildah:
    """Buildah without images."""
    return Buildah(tmp_path)


def test_a_build_runs_its_steps(buildah: Buildah, tmp_path: Path) -> None:
    context, rootfs = tmp_path / "context", tmp_path / "rootfs"
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    (context / "file").write_text("content")
    make_rootfs(rootfs)
    subprocess.run(["tar", "-C", rootfs, "-cf", context / "rootfs.tar", "."], check=True)

    buildah("bud", RUNTIME, "--tag=localhost/made", str(context))
    name = buildah("from", "localhost/made").stdout.strip()
    as_root = ("run", RUNTIME, "--user=root", name)
    assert buildah(*as_root, "cat", "/srv/made", "/tmp/user").stdout == "frog 0 content\nfrog\n"
    assert buildah("run", RUNTIME, name, "id", "-un").stdout == "frog\n"
    done = buildah("run", RUNTIME, "--network=none", name, "--", "sh", "-c", "exit 4", status=4)
    assert "exit status 4" in done.stderr
    buildah("rm", name)
