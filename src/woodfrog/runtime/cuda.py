"""GPUs: NVIDIA's program takes a process's CUDA state into its memory, and puts it back."""

from __future__ import annotations

import os

from woodfrog.errors import WoodfrogError
from woodfrog.runtime import cgroups
from woodfrog.runtime.state import start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.runtime.state import Container

DEVICES = "/dev/nvidia"


class Toggle:
    """The program cuda-checkpoint, which suspends a running process, and resumes a suspended one.

    A suspended process holds no GPU. Which ones are is in the container's state, so that the next
    command resumes them should we be killed.
    """

    def __init__(self, program: str, *, sequential: bool) -> None:
        self._program = program
        self._sequential = sequential

    def suspend(self, container: Container) -> list[int]:
        """Suspend every process of the container that holds a GPU; returns their host pids."""
        pids = [pid for pid in cgroups.processes(container.state["cgroup"]) if holds_gpu(pid)]
        if pids:
            container.state["cudaSuspended"] = {
                "program": self._program,
                "processes": [[pid, _started(pid)] for pid in pids],
            }
            container.save()
            _toggle_running(self, container, pids)
        return pids

    def toggle(self, pids: list[int]) -> None:
        """Suspend or resume processes, at once or one by one; raises what went wrong."""
        import subprocess

        running = []
        failures = []
        for pid in pids:
            try:
                process = subprocess.Popen(
                    [self._program, "--toggle", "--pid", str(pid)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                )
            except OSError as error:
                failures.append(f"{self._program} cannot be run: {error.strerror}")
                break
            running.append((pid, process))
            if self._sequential and process.wait():
                break
        for pid, process in running:
            said = process.communicate()[0].strip()[-500:]
            if process.returncode:
                how = f"exit status {process.returncode}" + (f": {said}" if said else "")
                failures.append(f"{self._program} failed for process {pid}: {how}")
        if failures:
            raise WoodfrogError("; ".join(failures))


def resume_suspended(container: Container) -> None:
    """Resume what a checkpoint has suspended that didn't end the container."""
    suspended = container.state.pop("cudaSuspended", None)
    if not suspended:
        return
    container.save()
    # Those that hold a GPU were not suspended, or run again.
    pids = [
        pid
        for pid, started in suspended["processes"]
        if started and _started(pid) == started and not holds_gpu(pid)
    ]
    _toggle_running(Toggle(suspended["program"], sequential=True), container, pids)


def _toggle_running(toggle: Toggle, container: Container, pids: list[int]) -> None:
    """Toggle processes, for which a paused container must run."""
    groups = container.state["cgroup"]
    paused = container.is_alive() and cgroups.is_frozen(groups)
    if paused:
        cgroups.freeze(groups, False)
    try:
        toggle.toggle(pids)
    finally:
        if paused:
            cgroups.freeze(groups, True)


def _started(pid: int) -> str:
    """Return when a process was started, which tells it from another with its pid; "" if gone."""
    found = start_time(pid)
    return found[1] if found and found[0] not in "ZX" else ""


def holds_gpu(pid: int) -> bool:
    """Tell whether a process has a file of an NVIDIA device open."""
    directory = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(directory)
    except (FileNotFoundError, ProcessLookupError):
        return False
    for number in numbers:
        try:
            if os.readlink(f"{directory}/{number}").startswith(DEVICES):
                return True
        except FileNotFoundError:
            continue
    return False
