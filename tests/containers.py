"""Running woodfrog as its users do, and the containers that it makes."""

import contextlib
import itertools
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bundles import Bundle

REPOSITORY = Path(__file__).resolve().parent.parent
# Another runtime may be named, to try the tests themselves.
COMMAND = shlex.split(os.environ.get("WOODFROG_COMMAND", str(REPOSITORY / "woodfrog")))
PF_EXITING = 4
DEADLINE = float(os.environ.get("WOODFROG_DEADLINE", "60"))
CGROUPS = Path("/sys/fs/cgroup")

_numbers = itertools.count()


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str


def eventually(question: Callable[[], Any], what: str, within: float = DEADLINE) -> Any:
    """Ask until the answer is true, and return it."""
    end = time.monotonic() + within
    while not (answer := question()):
        if time.monotonic() > end:
            pytest.fail(f"{what}: not within {within:.0f} s")
        time.sleep(0.005)
    return answer


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended (a zombie has)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    fields = stat.rpartition(")")[2].split()
    # One whose first thread has ended while others live looks like a zombie.
    return fields[0] in "ZX" and int(fields[17]) <= 1


def is_ending(pid: int) -> bool:
    """Tell whether a process is on its way out: it may have much memory to give back.

    Or has yet to run for that: then its SIGKILL waits.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
    except OSError:
        return False
    is_killed = int(status["SigPnd"], 16) >> (signal.SIGKILL - 1) & 1
    return bool(is_killed or int(stat.rpartition(")")[2].split()[6]) & PF_EXITING)


def remove_cgroups(name: str) -> None:
    """Remove the cgroups of this name, in v2's hierarchy and all of v1's, and those in them."""

    def removed() -> bool:
        try:
            for group in (*CGROUPS.glob(name), *CGROUPS.glob(f"*/{name}")):
                for directory, _, _ in os.walk(group, topdown=False):
                    os.rmdir(directory)
        except OSError:
            return False
        return True

    eventually(removed, f"the end of the cgroups {name}")


class Container:
    """A detached container that the test process is the parent of, once its runtime has gone."""

    def __init__(self, woodfrog: "Woodfrog", name: str, bundle: Bundle, init: int) -> None:
        self.woodfrog = woodfrog
        self.name = name
        self.bundle = bundle
        self.init = init
        self.status: int | None = None

    def wait_for(self, file: str, within: float = DEADLINE) -> None:
        """Wait until the program has made a file in /work; give up if the container ends."""
        path = self.bundle.work / file

        def there_or_ended() -> bool:
            return path.exists() or self.has_ended()

        eventually(there_or_ended, f"{self.name} makes {file}", within)
        assert path.exists(), f"{self.name} ended with {self.status}: {self.told()}"

    def has_ended(self) -> bool:
        """Tell whether the container's first process has ended, and reap it."""
        if self.status is None:
            # What `exec` brought in is our child too; unreaped, it keeps the first process alive.
            living_children(self.woodfrog.waited_for())
            try:
                pid, status = os.waitpid(self.init, os.WNOHANG)
            except ChildProcessError:
                return is_gone(self.init)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def wait(self, within: float = DEADLINE) -> int | None:
        """Wait for the container's end; one that hangs is killed."""
        end = time.monotonic() + within
        while not self.has_ended():
            if time.monotonic() > end:
                told = f"{self.told()}\n{self.doing()}"
                self.kill()
                pytest.fail(f"{self.name} did not end within {within:.0f} s: {told}")
            time.sleep(0.005)
        if self.status is None:
            # Somebody else has reaped it, like the holder of a template, and has kept the status.
            told = self.woodfrog("wait", self.name, status=None).stdout
            self.status = json.loads(told)["exitStatus"] if told else None
        return self.status

    def kill(self) -> None:
        """End the container without the runtime's help."""
        if not self.has_ended():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.init, signal.SIGKILL)
            thaw(self.name)
            eventually(self.has_ended, f"{self.name} dies of SIGKILL")

    def told(self) -> str:
        """Return what the container's processes wrote."""
        out = self.bundle.work / "out"
        report = out.read_text(errors="replace") if out.exists() else ""
        return self.woodfrog.output(self.name) + report

    def doing(self) -> str:
        """Tell what its processes do, for who wonders why they don't end."""
        groups = (f"{self.name}/**/cgroup.procs", f"*/{self.name}/**/cgroup.procs")
        files = [path for group in groups for path in CGROUPS.glob(group)]
        wanted = ("Name", "State", "PPid", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")
        lines = []
        for pid in sorted({pid for path in files for pid in path.read_text().split()}, key=int):
            process = Path("/proc", pid)
            with contextlib.suppress(OSError):
                status = (process / "status").read_text().splitlines()
                told = [line for line in status if line.partition(":")[0] in wanted]
                told += [(process / name).read_text().strip() for name in ("wchan", "syscall")]
                lines.append(" ".join([pid, *told]).replace("\t", " "))
        return "\n".join(lines)

    def checkpoint(self, image: Path, *flags: str, **how: Any) -> Done:
        """Checkpoint into a directory."""
        return self.woodfrog("checkpoint", f"--image-path={image}", *flags, self.name, **how)

    def delete(self) -> None:
        """Delete the container, ended or not."""
        self.kill()
        self.woodfrog("delete", "--force", self.name)
        self.woodfrog.deleted.add(self.name)

    def state(self) -> dict[str, Any]:
        """Return what `state` says."""
        found: dict[str, Any] = json.loads(self.woodfrog("state", self.name).stdout)
        return found


def launcher_without_python(directory: Path) -> Path:
    """Return the command of a clone that has the same code as ours, but no interpreter."""
    (directory / ".venv/bin").mkdir(parents=True)
    (directory / ".venv/bin/python").symlink_to("/bin/false")
    (directory / "src").symlink_to(REPOSITORY / "src")
    return shutil.copy2(REPOSITORY / "woodfrog", directory)


class Woodfrog:
    """The command line with a --root of its own, and the containers made by it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "root"
        self.containers: list[Container] = []
        self.names: list[str] = []
        self.deleted: set[str] = set()
        # Children that the test waits for itself: Popen.wait tells 0 of one that we have reaped.
        self.begun: set[int] = set()

    def output(self, name: str) -> str:
        """Return what a detached container and the command that started it wrote."""
        path = self.directory / f"{name}.output"
        return path.read_text(errors="replace") if path.exists() else ""

    def command(self, *arguments: str) -> list[str]:
        """Return the whole command line."""
        return [*COMMAND, "--root", str(self.root), *arguments]

    def __call__(
        self,
        *arguments: str,
        status: int | None = 0,
        output: Path | None = None,
        within: float = DEADLINE,
        limits: dict[int, int] | None = None,
        environment: dict[str, str] | None = None,
    ) -> Done:
        """Run one command and demand its exit status (None: any)."""
        # Files, not pipes: a detached container keeps its stdio open.
        number = next(_numbers)
        out = output or self.directory / f"command{number}.out"
        err = output or self.directory / f"command{number}.err"

        def limit() -> None:
            for which, most in (limits or {}).items():
                resource.setrlimit(which, (most, most))

        with out.open("ab") as stdout, err.open("ab") as stderr:
            process = subprocess.Popen(
                self.command(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                preexec_fn=limit if limits else None,
                env=os.environ | environment if environment else None,
            )
            end = time.monotonic() + within
            while process.poll() is None:
                if time.monotonic() > end:
                    process.kill()
                    process.wait()
                    pytest.fail(f"{' '.join(arguments)}: hung; it wrote {err.read_text()}")
                # As an engine's shim would: a container ends when all its processes are reaped.
                living_children({process.pid, *self.waited_for()})
                time.sleep(0.005)
        result = Done(
            process.returncode, out.read_text(errors="replace"), err.read_text(errors="replace")
        )
        if not output:
            out.unlink()
            err.unlink()
        if status is not None:
            assert result.status == status, f"{' '.join(arguments)}: {result}"
        return result

    def _detached(
        self, bundle: Bundle, name: str | None, command: str, *flags: str, **how: Any
    ) -> Container:
        name = name or f"wf-{os.getpid()}-{next(_numbers)}"
        bundle.config["linux"]["cgroupsPath"] = f"/{name}"
        bundle.save()
        self.names.append(name)
        self.deleted.discard(name)
        pid_file = self.directory / f"{name}.pid"
        arguments = ["--bundle", str(bundle.directory), "--pid-file", str(pid_file)]
        if command != "create":
            arguments.append("--detach")
        output = self.directory / f"{name}.output"
        self(command, *flags, *arguments, name, output=output, **how)
        container = Container(self, name, bundle, int(pid_file.read_text()))
        self.containers.append(container)
        return container

    def run(
        self, bundle: Bundle, name: str | None = None, flags: tuple[str, ...] = ()
    ) -> Container:
        """Start a bundle detached, with its output in a file."""
        return self._detached(bundle, name, "run", *flags)

    def restore(
        self, bundle: Bundle, image: Path, *flags: str, name: str | None = None, **how: Any
    ) -> Container:
        """Restore an image into a new container, detached."""
        return self._detached(bundle, name, "restore", f"--image-path={image}", *flags, **how)

    def restore_from_template(
        self, bundle: Bundle, image: Path, *flags: str, name: str | None = None
    ) -> Container:
        """Load an image as a template, fork a detached container from it, and drop it again."""
        template = f"template{next(_numbers)}"
        self("warm", f"--image-path={image}", template)
        try:
            return self.clone(template, bundle, *flags, name=name)
        finally:
            self("warm", "--drop", template)

    def clone(
        self, template: str, bundle: Bundle, *flags: str, name: str | None = None
    ) -> Container:
        """Fork a detached container from a template."""
        return self._detached(bundle, name, "restore", f"--template={template}", *flags)

    def create(self, bundle: Bundle) -> Container:
        """Make a container that waits."""
        return self._detached(bundle, None, "create")

    def create_and_restore(self, bundle: Bundle, image: Path, *flags: str) -> Container:
        """Restore an image into a container that `create` has made, detached."""
        container = self.create(bundle)
        output = self.directory / f"{container.name}.output"
        self("restore", "--detach", f"--image-path={image}", *flags, container.name, output=output)
        return container

    def parents(self) -> list[Path]:
        """Return the cgroups above those of containers that have been given no path."""
        name = f"woodfrog@{str(self.root).strip('/').replace('/', '-')[-200:]}"
        return [*CGROUPS.glob(f"*/{name}"), *CGROUPS.glob(name)]

    def close(self) -> list[str]:
        """End and delete all containers; return what is left of them all the same."""
        problems: list[str] = []
        for container in self.containers:
            container.kill()
        for name in dict.fromkeys(self.names):
            if name in self.deleted:
                continue
            done = self("delete", "--force", name, status=None)
            if done.status:
                problems.append(f"delete --force {name}: {done.stderr}")
        return problems + self.leftovers()

    def waited_for(self) -> set[int]:
        """Return the processes whose exit status somebody wants to know."""
        return self.begun | {one.init for one in self.containers}

    def leftovers(self) -> list[str]:
        """Return every process, mount, cgroup and state file that should have gone."""
        end = time.monotonic() + DEADLINE
        while any(is_ending(pid) for pid, _ in living_children()) and time.monotonic() < end:
            time.sleep(0.01)
        found = [f"process {pid} {command}" for pid, command in living_children()]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found += [f"mount {line}" for line in mounts if str(self.directory) in line]
        for name in dict.fromkeys(self.names):
            places = [*CGROUPS.glob(f"*/{name}"), *CGROUPS.glob(name)]
            found += [f"cgroup {place}" for place in places]
        found += [f"cgroup {place}" for place in self.parents()]
        if self.root.exists():
            found += [f"file {path}" for path in self.root.iterdir()]
        return found


def verdict(container: Container) -> str:
    """Let the program look whether all is well, and return what it says."""
    (container.bundle.work / "check").touch()
    status = container.wait()
    out = container.bundle.work / "out"
    said = out.read_text(errors="replace") if out.exists() else ""
    return said if status == 0 else f"ended with {status}: {container.told()}"


def thaw(name: str) -> None:
    """Let a cgroup that is paused, or has frozen ones, run: what is frozen doesn't die."""
    for file, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        for path in [*CGROUPS.glob(f"*/{name}/**/{file}"), *CGROUPS.glob(f"{name}/**/{file}")]:
            path.write_text(word)


def living_children(but_not: Set[int] = frozenset()) -> list[tuple[int, str]]:
    """Reap this process's dead children (but for some); return those that live."""
    living = []
    for thread in Path("/proc/self/task").iterdir():
        try:
            children = (thread / "children").read_text()
        except FileNotFoundError:
            continue  # a thread that has just ended: its children are another's now
        for word in children.split():
            pid = int(word)
            if pid in but_not:
                continue
            if is_gone(pid):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
            else:
                with contextlib.suppress(OSError):
                    command = Path(f"/proc/{pid}/cmdline").read_bytes()
                    living.append((pid, command.replace(b"\0", b" ").decode(errors="replace")))
    return living
