"""Podman with all its directories, its network and its mounts to itself."""

import os
import subprocess
from pathlib import Path

from busybox import make_rootfs
from containers import REPOSITORY, Done, eventually
from engine_place import Place

IMAGE = "localhost/box"
# The container's limits are none that a machine without CAP_SYS_RESOURCE couldn't set.
CONFIG = f"""
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
netns = "none"
log_driver = "k8s-file"
[network]
network_config_dir = "{{directory}}/networks"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "woodfrog"
runtime_supports_json = ["woodfrog"]
[engine.runtimes]
woodfrog = ["{REPOSITORY}/woodfrog"]
"""


MAKERS = (("run",), ("pod", "create"))


class Podman:
    """The command line in namespaces of its own, with an image of busybox."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._group = f"wf-podman-{os.getpid()}"
        config = directory / "containers.conf"
        config.write_text(CONFIG.format(directory=directory))
        # Podman wants a CRIU; the one that it finds is woodfrog.
        programs = directory / "bin"
        programs.mkdir()
        (programs / "criu").write_text(f'#!/bin/sh\nexec {REPOSITORY}/woodfrog criu "$@"\n')
        (programs / "criu").chmod(0o755)
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": str(config),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "TMPDIR": str(directory),
        }
        self._place = Place(directory, self._group, "catatonit", "-P")
        init = eventually(lambda: self._place.init, "a place for podman")
        eventually(lambda: b"catatonit" in Path(f"/proc/{init}/cmdline").read_bytes(), "its mounts")

    def prepare(self) -> None:
        """Import the image."""
        self.inside("ip", "link", "set", "lo", "up")
        rootfs, archive = self.directory / "rootfs", self.directory / "box.tar"
        make_rootfs(rootfs)
        subprocess.run(["tar", "-C", rootfs, "-cf", archive, "."], check=True)
        self("import", str(archive), IMAGE)

    def command(self, *words: str) -> list[str]:
        """Return the whole command line; what it makes is in a cgroup of ours."""
        made = next((count for count in (1, 2) if words[:count] in MAKERS), 0)
        if made:
            words = (*words[:made], f"--cgroup-parent=/{self._group}", *words[made:])
        return self.beside(
            *("podman", "--root", f"{self.directory}/root", "--runroot", f"{self.directory}/run"),
            *("--tmpdir", f"{self.directory}/tmp", "--storage-driver", "overlay", *words),
        )

    def beside(self, *words: str) -> list[str]:
        """Return the line that runs a command where podman lives."""
        return self._place.command(*words)

    def inside(self, *words: str) -> str:
        """Run a command where podman lives; returns what it wrote."""
        command = self.beside(*words)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def __call__(
        self,
        *words: str,
        status: int | None = 0,
        given: str | None = None,
        config: Path | None = None,
    ) -> Done:
        """Run one command and demand its exit status (None: any), perhaps with another config."""
        changed = {"CONTAINERS_CONF": str(config)} if config else {}
        # Files, not pipes: conmon keeps what it got.
        output, errors = self.directory / "stdout", self.directory / "stderr"
        with output.open("wb") as stdout, errors.open("wb") as stderr:
            done = subprocess.run(
                self.command(*words),
                stdout=stdout,
                stderr=stderr,
                input=None if given is None else given.encode(),
                stdin=subprocess.DEVNULL if given is None else None,
                env=self.environment | changed,
                timeout=60,
                check=False,
            )
        result = Done(done.returncode, output.read_text(), errors.read_text())
        if status is not None:
            assert done.returncode == status, f"podman {' '.join(words)}: {result}"
        return result

    def run(self, name: str, script: str, *flags: str) -> None:
        """Start a detached container of a shell script."""
        self("run", "-d", "--name", name, *flags, IMAGE, "sh", "-c", script)

    def logs(self, name: str) -> list[str]:
        """Return the lines that a container has written."""
        return self("logs", name).stdout.splitlines()

    def remove_all(self) -> None:
        """Remove every container and pod."""
        self("pod", "rm", "--force", "--all", "--time=0")
        self("rm", "--force", "--all", "--time=0", "--volumes")

    def close(self) -> list[str]:
        """End everything; returns what is left nevertheless."""
        return self._place.close()
