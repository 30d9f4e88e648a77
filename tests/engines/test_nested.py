"""Woodfrog inside a container that woodfrog runs, both frozen and thawed."""

import sys
from pathlib import Path

from containers import REPOSITORY, eventually
from docker_engine import Docker
from needs import needs

pytestmark = needs("root")

CONFIG = """{
    "ociVersion": "1.0.2",
    "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "args": [
        "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i >> /tmp/counted; sleep 0.05; done"]},
    "root": {"path": "/", "readonly": true},
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
               {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}],
    "linux": {"namespaces": [
        {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]}
}"""
WOODFROG = f"{REPOSITORY}/woodfrog"
LIBRARIES = [path for path in ("/lib", "/lib64") if Path(path).exists()]


class Inner:
    """Commands of a woodfrog in a container of docker's."""

    def __init__(self, docker: Docker, name: str, *flags: str) -> None:
        self._docker, self._name = docker, name
        shown = {str(REPOSITORY), "/usr", sys.base_prefix}
        volumes = [f"--volume={path}:{path}:ro" for path in sorted(shown)]
        volumes += [f"--volume={Path(path).resolve()}:{path}:ro" for path in LIBRARIES]
        docker.run(name, "sleep 1000", "--tmpfs=/tmp:exec", "--tmpfs=/bundle", *volumes, *flags)
        self.shell(f"cat > /bundle/config.json << END\n{CONFIG.replace('$', chr(92) + '$')}\nEND")

    def shell(self, script: str) -> str:
        return self._docker("exec", self._name, "/bin/sh", "-c", script).stdout

    def __call__(self, *words: str, status: int = 0) -> str:
        done = self._docker("exec", self._name, WOODFROG, *words, status=status)
        return done.stdout + done.stderr

    def counts_on(self, after: int) -> int:
        """Wait until the counter has counted on; no number may be missing."""

        def counted() -> int:
            lines = self.shell("cat /proc/[0-9]*/root/tmp/counted | sort -nu; :").split()
            assert lines == [str(number) for number in range(1, len(lines) + 1)]
            return len(lines)

        eventually(lambda: counted() > after + 1, "it counts on")
        return counted()


def test_a_container_in_a_container_goes_on(docker: Docker) -> None:
    inner = Inner(docker, "frog", "--privileged")
    inner("run", "--detach", "--bundle=/bundle", "tadpole")
    before = inner.counts_on(0)
    inner("checkpoint", "--leave-running", "--image-path=/tmp/early", "tadpole")
    inner("checkpoint", "--image-path=/tmp/late", "tadpole")
    inner("restore", "--detach", "--bundle=/bundle", "--image-path=/tmp/late", "grown")
    inner.counts_on(before)
    inner("rollback", "--image-path=/tmp/late", "grown")
    before = inner.counts_on(before)

    # Both at once. That the inner one covers the outer one's /tmp, with its files, is no matter.
    docker("checkpoint", "create", "frog", "one")
    docker.is_frozen("frog")
    docker("start", "--checkpoint=one", "frog")
    inner.counts_on(before)
    assert inner.shell("ls /tmp/early /tmp/late").split().count("checkpoint.img") == 2


def test_a_container_without_rights_says_what_it_takes(docker: Docker) -> None:
    inner = Inner(docker, "frog")
    said = inner("run", "--detach", "--bundle=/bundle", "tadpole", status=1)
    assert "needs CAP_SYS_ADMIN" in said
    assert "start it with --privileged" in said
