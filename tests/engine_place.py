"""A place for an engine: network, mounts and pids of its own, which end with it."""

import subprocess
from pathlib import Path

from containers import eventually, is_gone, living_children, remove_cgroups


class Place:
    """Namespaces in which a command runs; what it makes shall be in the cgroup `group`."""

    def __init__(self, directory: Path, group: str, *command: str) -> None:
        self._directory = directory
        self._group = group
        self._log = directory / "log"
        with self._log.open("wb") as log:
            # It dies with us, and all that is in its pid namespace dies with it.
            self._holder = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL"),
                    *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"),
                    *("--mount-proc", *command),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def log(self) -> str:
        """Return what the command has written."""
        return self._log.read_text(errors="replace")

    def has_ended(self) -> bool:
        """Tell whether the command has ended."""
        return self._holder.poll() is not None

    @property
    def init(self) -> int:
        """The first process of the pid namespace, as we see it; 0 if there is none yet."""
        children = f"/proc/{self._holder.pid}/task/{self._holder.pid}/children"
        return int((Path(children).read_text().split() or ["0"])[0])

    def command(self, *words: str) -> list[str]:
        """Return the line that runs a command there."""
        return ["nsenter", f"--target={self.init}", "--net", "--mount", "--pid", *words]

    def close(self) -> list[str]:
        """End everything; returns what is left nevertheless."""
        init = self.init
        self._holder.kill()
        self._holder.wait()

        def is_empty() -> bool:
            living_children()  # which may be ours by now, and nobody else's to reap
            return is_gone(init)

        eventually(is_empty, f"the end of all that is in {self._group}")
        remove_cgroups(self._group)
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in mounts if str(self._directory) in line]
