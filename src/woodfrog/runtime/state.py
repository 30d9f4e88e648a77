"""What is known of a container between two commands: its state directory, status and lock."""

from __future__ import annotations

import fcntl
import os
import time

from woodfrog.errors import StateError
from woodfrog.runtime import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

DEFAULT_ROOT = "/run/woodfrog"

# In the state directory while restored memory is still being filled in: by whom, and how far.
FILLING = "filling"
TRACKING = "tracking"
_BEING_WRITTEN = "state.json.new"

CREATED, RUNNING, PAUSED, STOPPED = "created", "running", "paused", "stopped"

# The life cycle: what each operation needs, and what to say if that isn't so.
_MAY: dict[str, tuple[tuple[str, ...], str]] = {
    "start": ((CREATED,), "cannot start container {id}, which is {status}"),
    "exec": ((CREATED, RUNNING, PAUSED), "cannot exec in container {id}, which is {status}"),
    # containerd tells by these words that there was nothing left to kill.
    "kill": ((CREATED, RUNNING, PAUSED), "container not running: {id}"),
    "pause": ((CREATED, RUNNING), "cannot pause container {id}, which is {status}"),
    "resume": ((PAUSED,), "container {id} is not paused, but {status}"),
    "update": ((CREATED, RUNNING, PAUSED), "container {id} is not running"),
    "events": ((CREATED, RUNNING, PAUSED), "container with id {id} is not running"),
    "wait": ((CREATED, RUNNING, PAUSED), "container {id} has ended"),
    "delete": ((STOPPED,), "cannot delete container {id}, which is not stopped: {status}"),
    "checkpoint": ((RUNNING, PAUSED), "cannot checkpoint container {id}, which is {status}"),
    "rollback": ((RUNNING, PAUSED), "cannot roll back container {id}, which is {status}"),
    "tar": ((RUNNING, PAUSED), "cannot look into container {id}, which is {status}"),
    "restore": ((CREATED,), "cannot restore into container {id}, which is {status}"),
}
_HINTS = {
    "delete": "stop it first (woodfrog kill), or use --force",
    "restore": "restore into a new id, or delete this one first",
    "checkpoint": "start it first: only a running container has something to save",
    "rollback": "restore the image into a new container instead",
    "tar": "its files can be told from its image's while it runs",
}


class UnknownContainer(StateError):
    """There is no container of that id (any more)."""


def check_id(id: str, what: str = "container id") -> None:
    """Raise StateError unless the id, or `what` it is, is a plain name, fit to be a directory's."""
    allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-."
    if not id or id in (".", "..") or len(id) > 255 or id.strip(allowed):
        raise StateError(
            f"invalid {what} {id!r}", hint="use letters, digits and the characters _ + - ."
        )


def start_time(pid: int) -> tuple[str, str] | None:
    """Return a process's (state letter, start time), or None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.readall().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0].decode(), fields[19].decode()


def _other_threads_live(pid: int) -> bool:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(
        (start_time(int(thread)) or "Z")[0] not in "ZX" for thread in threads if thread != str(pid)
    )


def boot_id() -> str:
    """Return what tells this boot from the next: pids don't outlive it."""
    with open("/proc/sys/kernel/random/boot_id", "rb", buffering=0) as file:
        return file.readall().decode().strip()


def now() -> str:
    """Return the time as RFC 3339 text with nanoseconds."""
    nanoseconds = time.time_ns()
    seconds = time.gmtime(nanoseconds // 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", seconds) + f".{nanoseconds % 10**9:09d}Z"


class Lock:
    """The lock of one container, held by a `with` block."""

    def __init__(self, directory: str, id: str, *, wait: bool) -> None:
        self._directory = directory
        self._id = id
        self._how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
        self._descriptor = -1

    def __enter__(self) -> Lock:
        path = os.path.join(self._directory, "lock")
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                raise _unknown(self._id) from None
            fcntl.flock(descriptor, self._how)
            # Whoever held it may have deleted the container while we waited.
            try:
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    self._descriptor = descriptor
                    self._tidy()
                    return self
            except FileNotFoundError:
                pass
            os.close(descriptor)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.release()

    def _tidy(self) -> None:
        """Remove what somebody was writing who was killed: only who has the lock writes it."""
        try:
            os.unlink(os.path.join(self._directory, _BEING_WRITTEN))
        except FileNotFoundError:
            pass

    def release(self) -> None:
        """Give the lock back early."""
        if self._descriptor >= 0:
            # An init that was forked meanwhile has a duplicate: closing ours wouldn't do.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self.close()

    def close(self) -> None:
        """Close our descriptor of it; a forked child does that, and its parent keeps the lock."""
        os.close(self._descriptor)
        self._descriptor = -1


def _unknown(id: str) -> UnknownContainer:
    return UnknownContainer(
        f"container {id} does not exist", hint="`woodfrog list` shows those that do"
    )


class Container:
    """One container's state directory, and what its state.json says."""

    def __init__(self, root: str, id: str, state: dict[str, Any]) -> None:
        check_id(id)
        self.root = root
        self.id = id
        self.directory = os.path.join(root, id)
        self.state = state

    @classmethod
    def new(cls, root: str, id: str) -> Container:
        """Make the state directory of a new container, with its lock in it."""
        container = cls(root, id, {})
        try:
            os.makedirs(root, mode=0o711, exist_ok=True)
            container._make_directory()
        except PermissionError as error:
            raise StateError(
                f"cannot make {container.directory}: {error.strerror}",
                hint="woodfrog needs the host's root, which a rootless engine is not",
            ) from None
        # The lock file is also the mark of a directory of ours: other runtimes may share the root.
        os.close(os.open(container.path("lock"), os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return container

    def _make_directory(self) -> None:
        try:
            os.mkdir(self.directory, 0o700)
        except FileExistsError:
            raise StateError(
                f"container {self.id} already exists", hint="delete it first, or take another id"
            ) from None

    @classmethod
    def load(cls, root: str, id: str) -> Container:
        """Return an existing container; its state is as it was when its lock was last held."""
        container = cls(root, id, {})
        container.reload()
        return container

    def reload(self) -> None:
        """Read state.json again."""
        try:
            with open(self.path("state.json"), "rb", buffering=0) as file:
                self.state = jsontext.parse(file.readall().decode())
        except (FileNotFoundError, NotADirectoryError):
            raise _unknown(self.id) from None
        except ValueError as error:
            raise StateError(
                f"{self.path('state.json')} is damaged: {error}",
                hint=f"`woodfrog delete --force {self.id}` removes what is left",
            ) from None
        if "bootId" not in self.state:
            # Another runtime shares this root (dockerd gives all of them one).
            raise _unknown(self.id)

    def path(self, name: str) -> str:
        """Return where a file of the state directory is."""
        return os.path.join(self.directory, name)

    def lock(self, *, wait: bool = True) -> Lock:
        """Return the container's lock, to be held by `with`.

        Without `wait` that raises BlockingIOError if somebody else has it.
        """
        return Lock(self.directory, self.id, wait=wait)

    def save(self) -> None:
        """Write state.json; whoever reads sees the old one or the new one."""
        self.write(_BEING_WRITTEN, jsontext.write(self.state).encode())
        os.rename(self.path(_BEING_WRITTEN), self.path("state.json"))

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the state directory: all of it, or an error tells."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        descriptor = os.open(self.path(name), flags, 0o600)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        except OSError as error:
            raise StateError(f"cannot write {self.path(name)}: {error.strerror}") from None
        finally:
            os.close(descriptor)

    @property
    def pid(self) -> int:
        """The host pid of the container's first process; 0 before there is one."""
        return int(self.state.get("pid", 0))

    @property
    def has_own_pids(self) -> bool:
        """Tell whether the container has a pid namespace, that ends with its first process."""
        return bool(self.state.get("ownPids", True))

    def is_alive(self) -> bool:
        """Tell whether the first process is still there; a zombie is not.

        One whose main thread has ended looks like a zombie while other threads live on.
        """
        if not self.pid or self.state["bootId"] != boot_id():
            return False
        found = start_time(self.pid)
        if found is None or found[1] != self.state["startTime"]:
            return False
        return found[0] not in "ZX" or _other_threads_live(self.pid)

    def status(self) -> str:
        """Return created, running, paused or stopped, from what the kernel says now."""
        if not self.is_alive():
            return STOPPED
        if os.path.exists(self.path("exec.fifo")):
            return CREATED
        from woodfrog.runtime import cgroups

        return PAUSED if cgroups.is_frozen(self.state["cgroup"]) else RUNNING

    def require(self, operation: str) -> str:
        """Return the status, or raise StateError if it doesn't allow the operation."""
        status = self.status()
        allowed, message = _MAY[operation]
        if status not in allowed:
            raise StateError(
                message.format(id=self.id, status=status), hint=_HINTS.get(operation, "")
            )
        return status

    def report(self) -> dict[str, object]:
        """Return the state as `state` shows it, and as hooks get it."""
        status = self.status()
        shown: dict[str, object] = {
            "ociVersion": self.state["ociVersion"],
            "id": self.id,
            "pid": self.pid if status != STOPPED else 0,
            "status": status,
            "bundle": self.state["bundle"],
            "rootfs": self.state["rootfs"],
            "created": self.state["created"],
        }
        for key in ("annotations", "restoredFrom", "checkpoint"):
            if self.state.get(key):
                shown[key] = self.state[key]
        if filling := self.filling():
            shown["filling"] = {
                key: filling[key] for key in ("bytes", "of", "failure") if key in filling
            }
        shown["owner"] = self.state.get("owner", "")
        return shown

    def filling(self) -> dict[str, Any] | None:
        """Return what is known of memory that is being filled in, or that this has failed."""
        return self._told(FILLING)

    def tracking(self) -> dict[str, Any] | None:
        """Return what is known of the noting of what its processes write to."""
        return self._told(TRACKING)

    def helpers(self) -> list[tuple[int, str]]:
        """Return the processes of ours that stay beside it, and what for."""
        filling, tracking = self.filling() or {}, self.tracking() or {}
        known = (
            (filling.get("server"), "brings the memory that it was restored without"),
            (filling.get("holder"), "ends it if that goes wrong"),
            (tracking.get("holder"), "has the kernel note what it writes to, and stands by"),
        )
        return [
            (one[0], purpose)
            for one, purpose in known
            if one and (start_time(one[0]) or ("", ""))[1] == one[1]
        ]

    def _told(self, name: str) -> dict[str, Any] | None:
        try:
            with open(self.path(name), "rb", buffering=0) as file:
                found: dict[str, Any] = jsontext.parse(file.readall().decode())
                return found
        except FileNotFoundError:
            return None

    def remove(self) -> None:
        """Remove the state directory; the lock goes last, so whoever waits for it finds nothing."""
        for name in os.listdir(self.directory):
            if name != "lock":
                _remove_tree(self.path(name))
        os.unlink(self.path("lock"))
        os.rmdir(self.directory)


def _remove_tree(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        for name in os.listdir(path):
            _remove_tree(os.path.join(path, name))
        os.rmdir(path)
    else:
        os.unlink(path)


def all_containers(root: str) -> list[Container]:
    """Return the containers under a root, by id; directories of other programs are left out."""
    found = []
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    for name in names:
        try:
            found.append(Container.load(root, name))
        except StateError:
            continue
    return found
