"""Docker's client, as a program that is called, and what it knows of containers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from woodfrog.errors import WoodfrogError

# What ends us as Ctrl-C does: with what was begun undone.
ENDING = (signal.SIGTERM, signal.SIGHUP)

_DAEMON = "Error response from daemon: "


@dataclass(frozen=True)
class Container:
    """A container, as `docker inspect` tells it."""

    told: dict[str, Any]

    @property
    def id(self) -> str:
        """Return its id."""
        return str(self.told["Id"])

    @property
    def name(self) -> str:
        """Return its name."""
        return str(self.told["Name"]).removeprefix("/")

    @property
    def status(self) -> str:
        """Return its status: created, running, paused, exited, …"""
        return str(self.told["State"]["Status"])

    @property
    def pid(self) -> int:
        """Return the pid of its first process."""
        return int(self.told["State"]["Pid"])

    @property
    def bundle(self) -> str:
        """Return the directory of its bundle: while it runs, where containerd's shim is."""
        with open(f"/proc/{self.pid}/stat", "rb") as file:
            shim = int(file.read().rpartition(b")")[2].split()[1])
        return os.readlink(f"/proc/{shim}/cwd")

    def warnings(self) -> list[str]:
        """Return what the runtime has warned of; nothing if the container has ended since."""
        try:
            with open(f"{self.bundle}/log.json", encoding="utf-8") as file:
                lines = [json.loads(line) for line in file]
        except (OSError, ValueError):
            return []
        return [str(line["msg"]) for line in lines if line.get("level") == "warning"]

    @property
    def runtime(self) -> str:
        """Return the name of its runtime."""
        return str(self.told["HostConfig"]["Runtime"])

    @property
    def has_restart_policy(self) -> bool:
        """Tell whether docker may start it again when it ends."""
        return self.told["HostConfig"]["RestartPolicy"]["Name"] not in ("", "no")

    @property
    def has_terminal(self) -> bool:
        """Tell whether it was created with --tty."""
        return bool(self.told["Config"]["Tty"])

    @property
    def upper(self) -> str:
        """Return the directory with the files that it has changed; "" if none is known."""
        driver = self.told.get("GraphDriver") or {}
        return str((driver.get("Data") or {}).get("UpperDir") or "")

    def checkpoints(self, data_root: str) -> str:
        """Return the directory in which docker keeps its checkpoints."""
        return f"{data_root}/containers/{self.id}/checkpoints"


class Docker:
    """The client, with the global options that it was called with itself."""

    def __init__(self, options: list[str]) -> None:
        # A plugin is told by which command line it was called.
        client = os.environ.get("DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND") or "docker"
        self._command = [client, *options]

    def __call__(self, *words: str) -> str:
        """Run a command; returns what it wrote."""
        try:
            done = subprocess.run(
                [*self._command, *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="surrogateescape",
                check=False,
            )
        except FileNotFoundError:
            raise WoodfrogError("docker's client is not installed") from None
        if done.returncode:
            raise WoodfrogError(_what_is_wrong(done.stderr) or f"docker {words[0]} failed")
        sys.stderr.write(done.stderr)
        return done.stdout

    @contextmanager
    def attached(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command on our own stdin, stdout and stderr, and wait for it."""
        # Ctrl-C is for the client, which gets it, too; and what else ends us leaves the container.
        wanted = {signal.SIGINT: signal.SIG_IGN} | dict.fromkeys(ENDING, signal.SIG_DFL)
        before = {number: signal.signal(number, action) for number, action in wanted.items()}
        try:
            with subprocess.Popen([*self._command, *words]) as process:
                yield process
        finally:
            for number, action in before.items():
                signal.signal(number, action)

    def wait(self, container: Container) -> None:
        """Wait until the daemon has seen a container's end."""
        try:
            self("wait", container.id)
        except WoodfrogError:
            if self.find(container.id):  # else it was started with --rm
                raise

    def container(self, name: str) -> Container:
        """Return a container by its name or id."""
        return self.containers([name])[0]

    def containers(self, names: list[str]) -> list[Container]:
        """Return containers by their names or ids."""
        told = json.loads(self("container", "inspect", "--", *names)) if names else []
        return [Container(one) for one in told]

    def find(self, name: str) -> Container | None:
        """Return a container, or None if there is none of that name."""
        try:
            return self.container(name)
        except WoodfrogError as error:
            if "no such container" in str(error).lower():
                return None
            raise

    @cached_property
    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = json.loads(self("info", "--format", "{{json .}}"))
        if errors := info.get("ServerErrors"):
            raise WoodfrogError(str(errors[0]))
        return info

    @cached_property
    def data_root(self) -> str:
        """Return the daemon's directory, which has to be on this machine."""
        path = str(self._info["DockerRootDir"])
        if not os.access(f"{path}/containers", os.R_OK | os.W_OK | os.X_OK):
            raise WoodfrogError(
                f"docker's directory {path} can't be written to",
                hint="run this as root, on the machine where the daemon runs",
            )
        return path

    def check_runtime(self, name: str) -> None:
        """Raise WoodfrogError unless the runtime of this name is woodfrog."""
        known = (self._info.get("Runtimes") or {}).get(name) or {}
        path = known.get("path") or ""
        try:
            told = subprocess.run([path, "--version"], capture_output=True, check=False).stdout
        except OSError:
            told = b""
        if not told.startswith(b"woodfrog version "):
            raise WoodfrogError(
                f"docker's runtime {name} is not woodfrog",
                hint="create the container with --runtime=woodfrog; `woodfrog install docker`"
                " makes docker know it",
            )


def _what_is_wrong(text: str) -> str:
    """Return the line of an output that tells an error."""
    lines = [line.removeprefix("docker: ") for line in text.splitlines() if line.strip()]
    for line in lines:
        if line.startswith(_DAEMON):
            return line.removeprefix(_DAEMON)
    return lines[0] if lines else ""
