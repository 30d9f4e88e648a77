"""A container that was frozen, and whose image is changed."""

import os
from pathlib import Path

import pytest
from shells import frozen, shell

from bundles import Bundle
from containers import Woodfrog
from images import RECORDS, doctored
from woodfrog.image.container_file import Reader
from woodfrog.image.record import Record
from woodfrog.resources.process import Process

ID = 1 << 20
_LACKED = ("CAP_DAC_OVERRIDE", "CAP_NET_RAW")


class Attack:
    """A container that was frozen, and whose image is changed."""

    def __init__(self, woodfrog: Woodfrog, *lacked: str) -> None:
        self.woodfrog = woodfrog
        self._made = 0
        # The shell waits by itself: there is but one process.
        self.bundle: Bundle = shell(woodfrog, ": > /work/ready; read line <> /work/check")
        os.mkfifo(self.bundle.work / "check")
        for capabilities in self.bundle.process["capabilities"].values():
            capabilities[:] = [one for one in capabilities if one not in {*_LACKED, *lacked}]
        container = woodfrog.run(self.bundle)
        container.wait_for("ready")
        self.image: Path = frozen(container)

    def leave_secret(self, mode: int) -> None:
        """Make a file of somebody else, whom the container can't be."""
        secret = self.bundle.work / "secret"
        secret.write_text("another's")
        os.chown(secret, 1234, 1234)
        secret.chmod(mode)

    def hostile(self, *more: Record, **fields: object) -> Path:
        """Make an image with more records, and other fields of its processes."""
        self._made += 1
        target = self.image.with_name(f"hostile{self._made}")
        return doctored(self.image, target, Process, more=more, **fields)

    @property
    def process(self) -> Process:
        """The one process of the image."""
        with Reader(str(self.image)) as reader:
            (found,) = (one for one in reader.records(RECORDS) if isinstance(one, Process))
        return found

    def refusal(self, *more: Record, **fields: object) -> str:
        """Return why such an image is refused."""
        image = self.hostile(*more, **fields)
        self.bundle.save()
        where = f"--bundle={self.bundle.directory}", f"--image-path={image}"
        self.woodfrog.names.append("attacked")
        done = self.woodfrog("restore", "--detach", *where, "attacked", status=None)
        assert done.status == 1, "it was restored"
        return done.stderr


@pytest.fixture
def attack(woodfrog: Woodfrog) -> Attack:
    return Attack(woodfrog)
