"""Settings of the kernel (sysctl) that programs changed in the container's own namespaces."""

import os
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from functools import cache, cached_property
from itertools import count

from woodfrog.errors import ImageError, UnsupportedResource, while_
from woodfrog.image.record import Record
from woodfrog.kernel import mounts, syscalls
from woodfrog.kernel import namespaces as calls
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.procfs.mountinfo import read_mounts
from woodfrog.kernel.reading_many import Reads
from woodfrog.remote.stub import Stub
from woodfrog.resources import credentials, namespaces, pid_settings, sysctl_table

_MOST_BYTES = 4096
_MANY_FILES = 8192
_SHORT = 256


class Sysctls(Record, frozen=True, tag="sysctls"):
    """What was changed, by paths below /proc/sys, in the order in which it is to be set."""

    ipc: list[tuple[str, bytes]]
    network: list[tuple[str, bytes]]
    pid: list[tuple[str, bytes]] = []


class Usual:
    """The settings of new namespaces, read when they are first asked for."""

    def __init__(self) -> None:
        self._kept: Opened | None = None

    def keep_open(self, init: int) -> None:
        """Have the files of a container's settings open from now on."""
        self._kept = Opened(init, self)

    def opened(self, init: int, undo: ExitStack) -> "Opened":
        """Return open files of the container's settings; what isn't kept is closed by `undo`."""
        if self._kept:
            return self._kept
        opened = Opened(init, self)
        undo.callback(opened.close)
        return opened

    @cached_property
    def settings(self) -> Mapping[str, bytes]:
        """All of them, by paths below /proc/sys."""
        found: dict[str, bytes] = {}

        def look() -> None:
            calls.unshare(HERE, calls.CLONE_NEWIPC | calls.CLONE_NEWNET)
            found.update(_read((*sysctl_table.IPC, *sysctl_table.network())))

        # A thread that ends there takes them along.
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return found

    def paths(self, kind: str) -> list[str]:
        """Return the paths of the settings of a kind of namespace, in the order to set them."""
        return self._paths[kind != "ipc"]

    @cached_property
    def _paths(self) -> tuple[list[str], list[str]]:
        found: tuple[list[str], list[str]] = [], []
        for path in self.settings:
            found[path.startswith("net/")].append(path)
        return found


@cache
def usual() -> Usual:
    """Return those that this process compares with.

    A keeper reads them once, soon after the container was made: who changes the host's later
    changes what new namespaces get, and not what these had.
    """
    return Usual()


class Opened:
    """Files of the settings of a process's network namespace, opened while it may still run.

    To open them takes most of the time that to read them does.
    """

    def __init__(self, init: int, new: Usual) -> None:
        self._files: dict[str, int] = {}
        self._link = ""
        self._short = bytearray()
        self._reads: Reads | None = None
        # What was read last, and what that says.
        self._read: tuple[list[int], bytes] = [], b""
        self._values: dict[str, bytes] = {}
        if os.sysconf("SC_OPEN_MAX") < _MANY_FILES:
            return  # others need them more
        with namespaces.inside(init, "net"):
            self._link = os.readlink("/proc/thread-self/ns/net")
            for path in new.paths("network"):
                try:
                    self._files[path] = os.open(f"/proc/sys/{path}", os.O_RDONLY | os.O_CLOEXEC)
                except OSError:
                    continue  # then to be read as any other
            self._short = bytearray(_SHORT * len(self._files))
            self._reads = Reads([(file, _SHORT, 0) for file in self._files.values()], self._short)
            # Read anew, it takes less time to learn that all is the same.
            self._read_short()

    def read(self, init: int, paths: Collection[str]) -> dict[str, bytes]:
        """Read settings of the network namespace that we, and the process, are in now."""
        if os.readlink(f"/proc/{init}/ns/net") != self._link:
            self.close()  # it has gone elsewhere since
        short = self._read_short()
        left = [path for path in paths if path not in short]
        if not left:
            return short
        found = short | dict(_read(left))
        return {path: found[path] for path in paths if path in found}

    def _read_short(self) -> dict[str, bytes]:
        """Read what is open; leave out what can't be read so, or is longer."""
        if not self._reads:
            return {}
        sizes = self._reads.run()
        texts = bytes(self._short)
        if (sizes, texts) != self._read:
            self._read = sizes, texts
            self._values = {
                path: texts[at : at + size].strip()
                for path, size, at in zip(self._files, sizes, count(0, _SHORT), strict=False)
                if 0 <= size < _SHORT
            }
        return self._values

    def close(self) -> None:
        """Close them."""
        self._reads = None
        while self._files:
            os.close(self._files.popitem()[1])


def collect(
    init: int,
    view: int,
    own: Collection[str],
    configured: Mapping[str, str],
    new: Usual,
    opened: Opened | None,
) -> Sysctls | None:
    """Compare a container's settings with those of new namespaces and of its config.

    `view` is a process that sees the container from its root, `own` are the namespaces that were
    made for it. Without a writable /proc/sys nobody can have changed anything.
    """
    if is_read_only(view):
        return None
    config = {_path(name): value.encode() for name, value in configured.items()}
    usual = {**new.settings, **config}
    ipc, network = list[tuple[str, bytes]](), list[tuple[str, bytes]]()
    if "ipc" in own:
        with namespaces.inside(init, "ipc"):
            ipc = _changed(dict(_read(new.paths("ipc"))), usual)
    if "network" in own:
        paths = new.paths("network")
        with namespaces.inside(init, "net"):
            network = _changed(opened.read(init, paths) if opened else dict(_read(paths)), usual)
    pid = pid_settings.collect(init, config) if "pid" in own else []
    return Sysctls(ipc=ipc, network=network, pid=pid) if ipc or network or pid else None


def _changed(found: Mapping[str, bytes], usual: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
    """Return those that are others than usual, and can be set."""
    if found.items() <= usual.items():
        return []
    differ = {p for p, value in found.items() - usual.items()}
    differ = {p for p in differ if found[p].split() != usual.get(p, b"").split()}
    differ |= {
        sysctl_table.SPREADING[path].format(device)
        for path in differ & sysctl_table.SPREADING.keys()
        for device in ("default", "lo")
    }
    return [(p, value) for p, value in found.items() if p in differ and _can_be_set(p)]


def _can_be_set(path: str) -> bool:
    return bool(os.stat(f"/proc/sys/{path}").st_mode & 0o200)


def changed_here(kind: str, new: Usual) -> list[tuple[str, bytes]]:
    """Compare the settings of the namespace that we are in with those of a new one."""
    return _changed(dict(_read(new.paths(kind))), new.settings)


def change_here(settings: Collection[tuple[str, bytes]]) -> None:
    """Change settings of the namespaces that we are in."""
    for path, value in settings:
        with (
            while_(f"setting {path.replace('/', '.')} to {os.fsdecode(value)}"),
            open(f"/proc/sys/{path}", "wb", buffering=0) as file,
        ):
            file.write(value)


def is_read_only(view: int) -> bool:
    """Tell whether nobody in a container can set anything; `view` sees it from its root."""
    found = [mount for mount in read_mounts(view) if mount.point in (b"/proc", b"/proc/sys")]
    return not found or "ro" in max(found, key=lambda one: len(one.point)).options.split(",")


def _path(name: str) -> str:
    """Return the path of a setting, whose name has dots or slashes."""
    return name if "/" in name else name.replace(".", "/")


def _read(paths: Collection[str]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        try:
            file = os.open(f"/proc/sys/{path}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield path, os.read(file, _MOST_BYTES).strip()
            finally:
                os.close(file)
        except OSError:
            continue  # not in this kernel


def of_device(namespace: int, view: int, device: bytes, new: Usual) -> list[tuple[str, bytes]]:
    """Return how a network device's settings differ from those that a new one gets.

    `namespace` is a descriptor of its network namespace, `view` sees the container from its root.
    """
    if is_read_only(view):
        return []
    name = os.fsdecode(device)
    found = []
    with namespaces.within(namespace, "net"):
        for place, default in sysctl_table.OF_DEVICES.items():
            if default == sysctl_table.NEW:
                usual = _within_directory(f"{place}/{default}", new.settings)
            else:
                usual = dict(_read_directory(f"{place}/{default}"))
            found += [
                (f"{place}/{name}/{setting}", value)
                for setting, value in _read_directory(f"{place}/{name}")
                if usual.get(setting) != value
            ]
    return found


def _within_directory(place: str, settings: Mapping[str, bytes]) -> dict[str, bytes]:
    found = (path.rpartition("/") for path in settings)
    return {name: settings[f"{at}/{name}"] for at, _, name in found if at == place}


def _read_directory(place: str) -> Iterator[tuple[str, bytes]]:
    try:
        names = sorted(set(os.listdir(f"/proc/sys/{place}")) - sysctl_table.TWICE)
    except FileNotFoundError:
        return
    for name in names:
        if _can_be_set(f"{place}/{name}"):
            for _, value in _read([f"{place}/{name}"]):
                yield name, value


def are_of_device(settings: Collection[tuple[str, bytes]], device: bytes) -> bool:
    """Tell whether settings are such as `of_device` returns."""
    name = os.fsdecode(device)
    for path, value in settings:
        place, _, setting = path.rpartition("/")
        if place not in {f"{one}/{name}" for one in sysctl_table.OF_DEVICES}:
            return False
        if not re.fullmatch(sysctl_table.SETTING, setting) or len(value) > _MOST_BYTES:
            return False
    return True


def check(sysctls: Sysctls) -> None:
    """Check that an image sets nothing but what is on the list."""
    check_ipc(sysctls.ipc)
    check_network(sysctls.network)
    pid_settings.check(sysctls.pid)


def check_ipc(settings: Collection[tuple[str, bytes]]) -> None:
    """Check that for the settings of an ipc namespace."""
    _check(settings, sysctl_table.IPC.__contains__)


def check_network(settings: Collection[tuple[str, bytes]]) -> None:
    """Check that for the settings of a network namespace."""
    _check(settings, sysctl_table.is_networks)


def _check(settings: Collection[tuple[str, bytes]], allows: Callable[[str], bool]) -> None:
    if any(not allows(path) or len(value) > _MOST_BYTES for path, value in settings):
        raise ImageError("the image sets what no image does (sysctl)")


def refuse_wider(init: int, sysctls: Sysctls, new: Collection[str], bounding: int) -> None:
    """Refuse settings that the waiting container could not make; `new` are its own namespaces."""
    pid_settings.refuse_wider(sysctls.pid, new, bounding)
    for name, found in (("ipc", sysctls.ipc), ("network", sysctls.network)):
        if found and name not in new:
            raise UnsupportedResource(
                f"the image has settings of its own ({found[0][0].replace('/', '.')}), but the new"
                f" container joins a namespace ({name})",
                hint=f'give it one of its own: "{name}" without a path in linux.namespaces',
            )
    refuse_read_only(init, (*sysctls.ipc, *sysctls.network, *sysctls.pid))


def refuse_read_only(init: int, settings: Collection[tuple[str, bytes]]) -> None:
    """Refuse settings if nothing can be set in the waiting container."""
    if settings and is_read_only(init):
        first = next(iter(settings))[0].replace("/", ".")
        raise UnsupportedResource(
            f"the image has changed settings ({first}), and /proc/sys is read-only in the new"
            " container",
            hint="take /proc/sys out of linux.readonlyPaths in config.json",
        )


def restore(stub: Stub, sysctls: Sysctls, *, bounding: int, permitted: int) -> None:
    """Change settings by the stub, with the container's own rights; but those of pids come last."""
    with ExitStack() as undo:
        program = stub.program()
        credentials.set_effective(program, bounding, permitted)
        stub.run(program)
        undo.callback(_regain, stub, permitted)
        write(stub, (*sysctls.ipc, *sysctls.network))


def write(stub: Stub, settings: Collection[tuple[str, bytes]]) -> None:
    """Change settings by a stub, with the rights that it has."""
    for path, value in settings:
        program = stub.program()
        resolve = mounts.RESOLVE_NO_SYMLINKS
        file = syscalls.openat2(
            program, b"/proc/sys/" + os.fsencode(path), os.O_WRONLY, resolve=resolve
        )
        program.expect(program.call(SYS.WRITE, file, value, len(value)), len(value))
        syscalls.close(program, file)
        with while_(f"setting {path.replace('/', '.')} to {os.fsdecode(value)}"):
            stub.run(program)


def _regain(stub: Stub, permitted: int) -> None:
    program = stub.program()
    credentials.set_effective(program, permitted, permitted)
    stub.run(program)
