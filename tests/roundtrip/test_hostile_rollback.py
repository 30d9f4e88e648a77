"""Images, and containers, by which a rollback could reach what isn't the container's own."""

import json
import os
import signal
import socket
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bundles import Bundle, mount
from containers import Container, Woodfrog
from images import RECORDS, doctored
from needs import needs
from woodfrog.image.container_file import Reader
from woodfrog.resources import limits
from woodfrog.resources.container import ContainerRecord
from woodfrog.resources.file_entry import Entry
from woodfrog.resources.process import Process
from woodfrog.resources.tmpfs import Tmpfs

pytestmark = needs("root")


class Running:
    """A container with a tmpfs that runs on, and its image."""

    def __init__(
        self,
        woodfrog: Woodfrog,
        script: str = ":",
        *,
        begin: str = ":;",
        own_names: bool = True,
    ) -> None:
        self.woodfrog = woodfrog
        waits = "while [ ! -e /work/check ]; do :; done"
        ready = (
            f"{begin} : > /work/ready; {waits}; {script}; : > /work/changed; while :; do :; done"
        )
        bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sh", "-c", ready])
        bundle.add_host_programs()
        bundle.add_mount(mount("/a/own", "tmpfs"))
        if not own_names:
            namespaces = bundle.config["linux"]["namespaces"]
            namespaces[:] = [one for one in namespaces if one["type"] != "uts"]
            bundle.config.pop("hostname", None)
        for capabilities in bundle.process["capabilities"].values():
            capabilities[:] = [one for one in capabilities if one != "CAP_MKNOD"]
        self.container: Container = woodfrog.run(bundle)
        self.container.wait_for("ready")
        self.work = bundle.work
        self.precious = bundle.work / "own"
        self.precious.mkdir()
        (self.precious / "precious").touch()
        self.image = woodfrog.directory / "image"
        self.container.checkpoint(self.image, "--leave-running", "--sync=none")

    def tmpfs(self) -> Tmpfs:
        with Reader(str(self.image)) as reader:
            (found,) = (
                one
                for one in reader.records(RECORDS)
                if isinstance(one, Tmpfs) and one.destination == "/a/own"
            )
        return found

    def child(self) -> int:
        """Return the one process beside the first."""
        told = self.woodfrog("ps", "--format=json", self.container.name).stdout
        (found,) = {*json.loads(told)} - {self.container.init}
        return int(found)

    def hostile(self, kind: type, **fields: Any) -> Path:
        return doctored(self.image, self.woodfrog.directory / "hostile", kind, **fields)

    def roll_back(self, image: Path, status: int) -> str:
        name = self.container.name
        return self.woodfrog("rollback", f"--image-path={image}", name, status=status).stderr


def test_no_files_are_removed_but_the_containers_own(woodfrog: Woodfrog) -> None:
    running = Running(woodfrog)
    empty = [running.tmpfs().entries[0]]

    # It may be left alone or refused, if only nothing goes.
    image = running.hostile(Tmpfs, destination="/work/own", entries=empty)
    woodfrog("rollback", f"--image-path={image}", running.container.name, status=None)

    assert (running.precious / "precious").exists()


def test_no_link_leads_to_files_outside(woodfrog: Woodfrog) -> None:
    running = Running(woodfrog, "mv /a /b && ln -s /work /a")
    (running.work / "check").touch()
    running.container.wait_for("changed")

    running.roll_back(running.image, 1)
    assert (running.precious / "precious").exists()


def test_no_devices_that_it_may_not_make(woodfrog: Woodfrog) -> None:
    running = Running(woodfrog)
    root = running.tmpfs().entries[0]
    device: Entry = msgspec.structs.replace(
        root, path=b"device", mode=stat.S_IFCHR | 0o666, device=os.makedev(1, 1)
    )
    image = doctored(
        running.image,
        woodfrog.directory / "hostile",
        Tmpfs,
        destination="/a/own",
        entries=[root, device],
    )

    assert "CAP_MKNOD" in running.roll_back(image, 1)


@pytest.mark.parametrize("name", ["RLIMIT_NOFILE", "RLIMIT_MEMLOCK"])
def test_no_higher_limits_than_its_parent_has(name: str, woodfrog: Woodfrog) -> None:
    """Whoever is made again; where woodfrog has CAP_SYS_RESOURCE, nothing else holds it down."""
    running = Running(woodfrog, begin="sleep 1000 &")
    first = running.container.init
    with Reader(str(running.image)) as reader:
        processes = [one for one in reader.records(RECORDS) if isinstance(one, Process)]
    (child,) = (one for one in processes if one.pid != 1)
    is_of_files = name == "RLIMIT_NOFILE"
    most = int(Path("/proc/sys/fs/nr_open").read_text()) if is_of_files else limits.NONE
    wanted = [*child.limits]
    wanted[limits.NAMES.index(name)] = limits.Limit(soft=most, hard=most)
    image = running.hostile(Process, which=lambda one: one.pid != 1, limits=wanted)
    os.kill(running.child(), signal.SIGKILL)

    running.roll_back(image, 0)

    assert limits.in_force(running.child()) == limits.in_force(first)


def test_no_name_of_the_machine(woodfrog: Woodfrog) -> None:
    running = Running(woodfrog, own_names=False)
    before = socket.gethostname()
    try:
        image = running.hostile(ContainerRecord, hostname=b"hostile")
        running.roll_back(image, 0)

        assert socket.gethostname() == before
    finally:
        if socket.gethostname() != before:
            Path("/proc/sys/kernel/hostname").write_text(before)
