"""Containerd with directories, network, mounts and pids to itself, for its client and for CRI."""

import hashlib
import io
import json
import os
import subprocess
import tarfile
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from busybox import make_rootfs
from containers import REPOSITORY, Done, eventually
from cri_client import CriClient
from engine_place import Place
from terminals import Terminal, in_a_terminal

IMAGE = "localhost/box:1"
PAUSE_IMAGE = "localhost/pause:1"
RUNTIME = f"{REPOSITORY}/woodfrog"
# The shim has its sockets in /run, and CNI in /var/lib what it remembers, whatever they are told:
# what is written there is seen in the daemon's mount namespace alone.
SCRIPT = """
set -e
for path in /run /var/lib; do
    layer=$0/layers$path
    mkdir -p $layer/upper $layer/work
    mount -t overlay -o lowerdir=$path,upperdir=$layer/upper,workdir=$layer/work overlay $path
done
ip link set lo up
containerd --config $0/config.toml || exit
"""
CONFIG = f"""
version = 2
root = "{{directory}}/root"
state = "{{directory}}/state"
[grpc]
address = "{{directory}}/socket"
[plugins."io.containerd.internal.v1.opt"]
path = "{{directory}}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
# No rights to lower it: this machine may lack CAP_SYS_RESOURCE.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{{directory}}/cni"
"""
ADDRESSES = {"type": "host-local", "ranges": [[{"subnet": "10.217.0.0/24"}]]}


class Containerd:
    """A daemon of our own with an image of busybox, and its clients."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.group = f"wf-containerd-{os.getpid()}"
        config = directory / "config.toml"
        config.write_text(CONFIG.format(directory=directory))
        install = ("install", "containerd", "--yes", f"--config={config}")
        subprocess.run([RUNTIME, *install], stdout=subprocess.DEVNULL, check=True)
        network = {
            "cniVersion": "0.4.0",
            "name": "pond",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "pond0",
                    "isGateway": True,
                    "ipam": {**ADDRESSES, "dataDir": f"{directory}/addresses"},
                }
            ],
        }
        (directory / "cni").mkdir()
        (directory / "cni/pond.conflist").write_text(json.dumps(network))
        self.place = Place(directory, self.group, "sh", "-c", SCRIPT, str(directory))
        eventually(self._serves, "containerd serves")
        self.cri = CriClient(directory / "socket")

    def _serves(self) -> bool:
        if self.place.has_ended():
            pytest.fail(f"containerd ended: {self.place.log()}")
        return "containerd successfully booted" in self.place.log()

    def prepare(self) -> None:
        """Import the images, for ctr and for CRI."""
        rootfs, archive = self.directory / "rootfs", self.directory / "images.tar"
        make_rootfs(rootfs)
        write_images(archive, rootfs, {IMAGE: ["sh"], PAUSE_IMAGE: ["sleep", "infinity"]})
        self("image", "import", str(archive))
        self("--namespace=k8s.io", "image", "import", str(archive))

    def command(self, *words: str) -> list[str]:
        """Return the client's whole command line."""
        return self.place.command("ctr", "-a", f"{self.directory}/socket", *words)

    def __call__(self, *words: str, status: int | None = 0) -> Done:
        """Run one command of the client and demand its exit status (None: any)."""
        done = subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
        result = Done(done.returncode, done.stdout, done.stderr)
        if status is not None:
            assert done.returncode == status, f"ctr {' '.join(words)}: {result}"
        return result

    def run(self, name: str, script: str) -> None:
        """Start a detached container of a shell script."""
        self("run", "--detach", *self.flags(name), IMAGE, name, "sh", "-c", script)

    def flags(self, name: str) -> tuple[str, str]:
        """Return the flags that every container is run with."""
        return f"--runc-binary={RUNTIME}", f"--cgroup=/{self.group}/{name}"

    def terminal(self, *words: str) -> AbstractContextManager[Terminal]:
        """Run the client in a terminal."""
        return in_a_terminal(self.command(*words), os.environ)

    def tasks(self) -> dict[str, str]:
        """Return the state of each task, by its name."""
        lines = self("task", "ls").stdout.splitlines()[1:]
        return {name: state for name, _, state in map(str.split, lines)}

    def exec(self, name: str, *words: str, status: int = 0) -> str:
        """Run another process in a container; returns what it wrote."""
        return self("task", "exec", "--exec-id=other", name, *words, status=status).stdout

    def remove(self, name: str) -> None:
        """End a container and remove it."""
        self("task", "rm", "--force", name, status=None)
        self("container", "rm", name)

    def remove_all(self) -> None:
        """Remove every container of the client's, and every pod."""
        for name in self("container", "ls", "--quiet").stdout.split():
            self.remove(name)
        pods = ("--namespace=k8s.io", "container", "ls", "--quiet")
        for sandbox in self(*pods, 'labels."io.cri-containerd.kind"==sandbox').stdout.split():
            self.cri("StopPodSandbox", {1: sandbox})
            self.cri("RemovePodSandbox", {1: sandbox})

    def close(self) -> list[str]:
        """End everything; returns what is left nevertheless."""
        self.cri.close()
        return self.place.close()


def write_images(archive: Path, rootfs: Path, commands: dict[str, list[str]]) -> None:
    """Write images of one root file system, each with a command, as `docker save` does."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(rootfs, ".")
    files = {"layer.tar": layer.getvalue()}
    difference = "sha256:" + hashlib.sha256(layer.getvalue()).hexdigest()
    manifests = []
    for name, command in commands.items():
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": command},
            "rootfs": {"type": "layers", "diff_ids": [difference]},
        }
        text = json.dumps(config).encode()
        place = hashlib.sha256(text).hexdigest() + ".json"
        files[place] = text
        manifests.append({"Config": place, "RepoTags": [name], "Layers": ["layer.tar"]})
    files["manifest.json"] = json.dumps(manifests).encode()
    with tarfile.open(archive, "w") as tar:
        for place, content in files.items():
            entry = tarfile.TarInfo(place)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
