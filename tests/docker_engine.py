"""Docker's daemon and client, with directories, network, mounts and pids to themselves."""

import ctypes
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from busybox import make_rootfs
from containers import REPOSITORY, Done, eventually
from engine_place import Place
from terminals import Terminal, in_a_terminal

IMAGE = "box"
# Where docker, containerd and woodfrog keep things whatever they are told: in the daemon's mount
# namespace /run is empty, and what is written to the others is seen there alone.
SCRIPT = """
set -e
mount -t tmpfs tmpfs /run
for path in /etc /usr/local/lib; do
    layer=$0/layers$path
    mkdir -p $layer/upper $layer/work
    mount -t overlay -o lowerdir=$path,upperdir=$layer/upper,workdir=$layer/work overlay $path
done
echo daemon:100000:65536 | tee /etc/subuid > /etc/subgid
ip link set lo up
$1 install docker --default --yes --config $0/daemon.json
dockerd --config-file $0/daemon.json || exit
"""
# Besides the usual one: docker gives no options, so that each has a runtime of its own.
RUNTIMES = {
    "closing": "--tcp-close",
    "keeping": "--tcp-established",
    "carrying": "--with-rootfs",
}


class Docker:
    """A daemon of our own that knows woodfrog, an image of busybox and redis, and a client."""

    def __init__(self, directory: Path, **more: str) -> None:
        self.directory = directory
        self.socket = directory / "socket"
        group = f"wf-docker-{os.getpid()}"
        config = {
            "data-root": f"{directory}/data",
            "exec-root": f"{directory}/exec",
            "pidfile": f"{directory}/pid",
            "hosts": [f"unix://{self.socket}"],
            "bip": "10.213.7.1/24",
            "cgroup-parent": f"/{group}",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "runtimes": {
                name: {"path": f"{REPOSITORY}/woodfrog", "runtimeArgs": [flag]}
                for name, flag in RUNTIMES.items()
            },
            **more,
        }
        (directory / "daemon.json").write_text(json.dumps(config))
        script = ("sh", "-c", SCRIPT, str(directory), f"{REPOSITORY}/woodfrog")
        self.place = Place(directory, group, *script)
        self.environment = {
            **os.environ,
            "DOCKER_HOST": f"unix://{self.socket}",
            "DOCKER_CONFIG": str(directory / "client"),
        }
        eventually(self._listens, "dockerd listens")
        self._import_image()

    def _listens(self) -> bool:
        if self.place.has_ended():
            pytest.fail(f"dockerd ended: {self.log()}")
        return self.socket.exists()

    def _import_image(self) -> None:
        rootfs = self.directory / "rootfs"
        make_rootfs(rootfs)
        add_program(rootfs, "redis-server")
        archive = self.directory / "box.tar"
        subprocess.run(["tar", "-C", rootfs, "-cf", archive, "."], check=True)
        self("import", "--change", "ENV PATH=/bin", str(archive), IMAGE)
        archive.unlink()

    def log(self) -> str:
        """Return the end of what the daemon wrote."""
        return self.place.log()[-4000:]

    def command(self, *words: str) -> list[str]:
        """Return the client's whole command line."""
        return self.place.command("docker", *words)

    def __call__(self, *words: str, status: int | None = 0, given: str = "") -> Done:
        """Run one command of the client and demand its exit status (None: any)."""
        done = subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            errors="replace",
            input=given,
            env=self.environment,
            timeout=60,
            check=False,
        )
        result = Done(done.returncode, done.stdout, done.stderr)
        if status is not None:
            assert done.returncode == status, f"docker {' '.join(words)}: {result}"
        return result

    def run(self, name: str, script: str, *flags: str) -> None:
        """Start a detached container of a shell script."""
        flags = (*_network(flags), *flags)
        self("run", "--detach", "--name", name, *flags, IMAGE, "sh", "-c", script)

    def say(self, script: str, *flags: str, status: int = 0) -> str:
        """Run a shell script in a container of its own; returns what it wrote."""
        flags = (*_network(flags), *flags)
        done = self("run", "--rm", *flags, IMAGE, "sh", "-c", script, status=status)
        return done.stdout + done.stderr

    def terminal(self, *words: str) -> AbstractContextManager[Terminal]:
        """Run the client in a terminal."""
        return in_a_terminal(self.command(*words), self.environment)

    def inspect(self, name: str, what: str) -> str:
        """Return something of what the daemon knows about a container."""
        return self("inspect", "--format", f"{{{{{what}}}}}", name).stdout.strip()

    def logs(self, name: str) -> list[str]:
        """Return the lines that a container has written."""
        return self("logs", name).stdout.splitlines()

    def is_frozen(self, name: str) -> None:
        """Wait until a container that a checkpoint has ended is known as such, and can start."""
        eventually(lambda: self.inspect(name, ".State.Status") == "exited", f"{name} has ended")
        self.carries_no_image()

    def carries_no_image(self) -> None:
        """Wait until the daemon has let go of what it carried from a checkpoint (moby issue 42900).

        Until then the container can't be started, and not be checkpointed once more.
        """
        data = Path(self("info", "--format={{.DockerRootDir}}").stdout.strip())
        carried = data / "containerd/daemon/io.containerd.content.v1.content/blobs/sha256"
        eventually(lambda: not any(carried.iterdir()), "the image is not carried any more")

    def ends(self, name: str) -> int:
        """Wait for a container's end; returns its exit status."""
        return int(self("wait", name).stdout)

    @contextmanager
    def connection(self, address: str, port: int) -> Iterator[socket.socket]:
        """Connect to a port from the daemon's machine."""
        found: list[socket.socket] = []

        def make() -> None:
            with open(f"/proc/{self.place.init}/ns/net") as namespace:
                assert ctypes.CDLL(None).setns(namespace.fileno(), 0) == 0
            found.append(socket.socket())

        # A thread of its own: what it joins, it stays in, and so do the sockets that it makes.
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        with found[0] as connection:
            connection.settimeout(60)
            connection.connect((address, port))
            yield connection

    def remove_all(self) -> None:
        """Remove every container."""
        names = self("ps", "--all", "--quiet").stdout.split()
        if names:
            self("rm", "--force", "--volumes", *names)

    def close(self) -> list[str]:
        """End everything; returns what is left nevertheless."""
        return self.place.close()


def add_program(rootfs: Path, name: str) -> None:
    """Copy a program of the host and its libraries into a root file system."""
    found = subprocess.run(["which", name], capture_output=True, text=True, check=True)
    path = found.stdout.strip()
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    for file in [path, *(word for word in listed.split() if word.startswith("/"))]:
        place = rootfs / file.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(Path(file).read_bytes())
        place.chmod(0o755)
    (rootfs / "bin" / name).symlink_to(path)


def _network(flags: tuple[str, ...]) -> tuple[str, ...]:
    """Return a flag for no network, which is faster, unless one is asked for."""
    asked = any(flag.startswith(("--network", "--publish", "--sysctl=net.")) for flag in flags)
    return () if asked else ("--network=none",)
