"""A container whose memory changes step by step, and is saved and set back meanwhile."""

import json
from pathlib import Path
from typing import Any

from bundles import Bundle, bind
from containers import Woodfrog, is_gone, verdict
from woodfrog.kernel.features import NEWER_THAN_6_1

SOURCE = Path(__file__).parent / "incremental" / "changing.c"
OLDER = {"WOODFROG_WITHOUT": ",".join(NEWER_THAN_6_1)}
MANY = 8 << 20  # what the program has of its own, but for little
SHARED = 9 << 20  # in its shared memory, of which the kernel notes nothing, at most


def keepers(woodfrog: Woodfrog) -> list[int]:
    """Return the keepers that there are of the containers of a root."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and not is_gone(int(entry.name)):
            try:
                ours = str(woodfrog.root).encode() in (entry / "cmdline").read_bytes()
                if ours and (entry / "comm").read_text().strip() == "woodfrog-keeper":
                    stat = (entry / "stat").read_text()
                    found[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
            except OSError:
                continue
    # A keeper's worker has its name for a moment.
    return [pid for pid, parent in found.items() if parent not in found]


class Changing:
    """A program whose memory changes step by step."""

    def __init__(self, woodfrog: Woodfrog, program: Path, *arguments: str) -> None:
        self.woodfrog = woodfrog
        command = ["/programs/" + program.name, *arguments]
        self.bundle = Bundle(woodfrog.directory / "bundle", command)
        (self.bundle.rootfs / "programs").mkdir()
        self.bundle.add_mount(bind(program.parent, "/programs"))
        self.container = woodfrog.run(self.bundle)
        self.container.wait_for("at0")

    def image(self, number: int) -> Path:
        """Return the directory of an image."""
        return self.woodfrog.directory / "images" / str(number)

    def go_to(self, step: int) -> None:
        """Let it change its memory."""
        self.aim_at(step)
        self.container.wait_for(f"at{step}")

    def aim_at(self, step: int) -> None:
        """Say up to which step it shall go."""
        (self.bundle.work / "goal.new").symlink_to(str(step))
        (self.bundle.work / "goal.new").rename(self.bundle.work / "goal")

    def save(self, number: int, *flags: str, **how: Any) -> dict[str, Any]:
        """Make an image, and return its figures."""
        flags = ("--leave-running", "--stats", "--sync=none", *flags)
        told = self.container.checkpoint(self.image(number), *flags, **how)
        found: dict[str, Any] = json.loads(told.stdout)
        return found

    def end(self) -> None:
        """End the container that is running."""
        self.container.delete()

    def verdict_of(self, number: int, step: int, *flags: str, **how: Any) -> str:
        """Restore an image, and let the program look."""
        for name in ("check", "check-child", "out", f"at{step}"):
            (self.bundle.work / name).unlink(missing_ok=True)
        self.aim_at(step)
        container = self.woodfrog.restore(self.bundle, self.image(number), *flags, **how)
        said = verdict(container)
        container.delete()
        return said

    def keepers(self) -> list[int]:
        """Return the keepers that there are of its containers."""
        return keepers(self.woodfrog)
