"""From the runtime's own process to the container's: identity, limits, rights, and exec."""

from __future__ import annotations

import errno
import os
import re
import resource
import stat

from woodfrog.errors import SpecError, WoodfrogError
from woodfrog.kernel import capability
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.mounts import open_regular_in_root
from woodfrog.kernel.process import (
    PR_SET_KEEPCAPS,
    PR_SET_NO_NEW_PRIVS,
    close_on_exec_from,
    join_session_keyring,
    prctl,
)
from woodfrog.kernel.signals import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from woodfrog.runtime.labels import Labels
    from woodfrog.runtime.seccomp import Profile

_RLIMITS = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
]
_MOST_PASSWD_BYTES = 1 << 20
# As the kernel reads a script's first line (load_script), and how deep it goes (exec_binprm).
_INTERPRETER = re.compile(rb"#![ \t]*([^ \t\n\0]+)")
_MOST_INTERPRETERS = 5
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def rlimits(process: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return the limits that a process object sets: name to (soft, hard)."""
    found: dict[str, tuple[int, int]] = {}
    for entry in process.get("rlimits") or ():
        name = entry.get("type") or ""
        if not name.startswith("RLIMIT_") or name[7:] not in _RLIMITS:
            raise SpecError(f"process.rlimits: there is no limit named {name!r}")
        if name in found:
            raise SpecError(f"process.rlimits: {name} is listed twice")
        soft, hard = entry.get("soft") or 0, entry.get("hard") or 0
        if soft > hard:
            raise SpecError(f"process.rlimits: {name}'s soft limit is above its hard limit")
        found[name] = (soft, hard)
    return found


def capability_masks(process: dict[str, Any]) -> tuple[dict[str, int], list[str]]:
    """Return the mask of each capability set, and warnings about names nobody knows."""
    masks, warnings = {}, []
    given = process.get("capabilities") or {}
    for kind in ("bounding", "effective", "inheritable", "permitted", "ambient"):
        mask = 0
        for name in given.get(kind) or ():
            if name in capability.NAMES:
                mask |= 1 << capability.NAMES.index(name)
            else:
                warnings.append(f"process.capabilities.{kind}: {name} is unknown and is left out")
        masks[kind] = mask
    lacking = masks["ambient"] & ~(masks["inheritable"] & masks["permitted"])
    if lacking:
        names = ", ".join(n for number, n in enumerate(capability.NAMES) if lacking >> number & 1)
        warnings.append(
            f"can't raise ambient capability {names}: it must be inheritable and permitted, too"
        )
    return masks, warnings


def check_rights(process: dict[str, Any]) -> None:
    """Raise an error now for what `become` would fail at, when nobody looks any more."""
    if not (wanted := rlimits(process)):
        return
    effective, _, _ = capability.capget(HERE)
    may_raise = effective >> capability.CAP_SYS_RESOURCE & 1
    for name, (_, hard) in wanted.items():
        has = resource.getrlimit(_RLIMITS.index(name[7:]))[1]
        if not may_raise and has != resource.RLIM_INFINITY and hard > has:
            raise WoodfrogError(
                f"cannot raise the hard limit {name} from {has} to {hard}: no CAP_SYS_RESOURCE",
                hint="ask for less in process.rlimits; in a container? start it with --privileged",
            )


def raise_hard_limits(process: dict[str, Any]) -> None:
    """Raise the hard limits as far as they will be set: in a user namespace nobody can."""
    for name, (_, hard) in rlimits(process).items():
        which = _RLIMITS.index(name[7:])
        soft, has = resource.getrlimit(which)
        if has != resource.RLIM_INFINITY and hard > has:
            resource.setrlimit(which, (soft, _limit(hard)))


def leave_keyring(name: str) -> None:
    """Take the container's session keyring, unless it has none, instead of the caller's."""
    if name:
        try:
            join_session_keyring(HERE, name)
        except OSError:
            pass  # a seccomp filter around us may forbid it; there are no keys to reach then


def reset_affinity() -> None:
    """Run on all processors of our cpuset, whatever the caller was bound to."""
    from woodfrog.kernel import scheduling

    try:
        scheduling.set_affinity(HERE, 0, -1)
    except OSError:
        pass  # a seccomp filter around us may forbid it


def apply_scheduling(process: dict[str, Any], config: dict[str, Any]) -> None:
    """Set scheduler, I/O priority, memory policy and personality, if there are any."""
    if asks_for_scheduling(process, config):
        from woodfrog.runtime import scheduling

        scheduling.apply(process, config)


def asks_for_scheduling(process: dict[str, Any], config: dict[str, Any]) -> bool:
    """Tell whether there is any of these settings; most have none and needn't load the module."""
    linux = config.get("linux") or {}
    return any(process.get(name) for name in ("scheduler", "ioPriority", "execCPUAffinity")) or (
        bool(linux.get("personality") or linux.get("memoryPolicy"))
    )


def environment(process: dict[str, Any]) -> dict[str, str]:
    """Return the environment; HOME is looked up in the container's passwd if not given."""
    found = dict(entry.partition("=")[::2] for entry in process.get("env") or ())
    if not found.get("HOME"):
        found["HOME"] = _home((process.get("user") or {}).get("uid") or 0)
    return found


def _home(uid: int) -> str:
    for line in _passwd().decode(errors="replace").splitlines():
        fields = line.split(":")
        if len(fields) >= 6 and fields[2] == str(uid):
            return fields[5] or "/"
    return "/"


def _passwd() -> bytes:
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        file = open_regular_in_root(HERE, root, "/etc/passwd")
        if file < 0:
            return b""
        try:
            return os.read(file, _MOST_PASSWD_BYTES)
        finally:
            os.close(file)
    except OSError:
        return b""
    finally:
        os.close(root)


def find_executable(process: dict[str, Any]) -> str:
    """Return the path of the program in our root, or say why there is none, in runc's words."""
    path = _find(process)
    refuse_magic_link(path, process["cwd"])
    return path


def _find(process: dict[str, Any]) -> str:
    name: str = process["args"][0]
    # docker tells exit status 126 and 127 by these very words.
    if "/" in name:
        path = os.path.join(process["cwd"], name)
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            reason = (error.strerror or "").lower()
            raise WoodfrogError(f'exec: "{name}": stat {path}: {reason}') from None
        if stat.S_ISDIR(mode):
            raise WoodfrogError(f'exec: "{name}": is a directory: permission denied')
        if not mode & 0o111:
            raise WoodfrogError(f'exec: "{name}": permission denied')
        return name if name.startswith("/") else path
    denied = False
    for directory in environment(process).get("PATH", DEFAULT_PATH).split(":"):
        path = os.path.join(process["cwd"], directory, name)
        try:
            mode = os.stat(path).st_mode
        except OSError:
            continue
        if stat.S_ISREG(mode) and mode & 0o111:
            return path
        denied = True
    if denied:
        raise WoodfrogError(f'exec: "{name}": permission denied')
    raise WoodfrogError(f'exec: "{name}": executable file not found in $PATH')


def refuse_magic_link(path: str, cwd: str) -> None:
    """Refuse a program (or the interpreter of a script) that /proc leads to: it could be our own.

    A container that had /proc/self/exe executed by us could write to the host's interpreter. What
    changes after this look finds that it can't be written to (kernel/own_program.py).
    """
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    name = os.fsencode(path)
    try:
        # The interpreter of a script may be one, too.
        for _ in range(_MOST_INTERPRETERS + 1):
            opened = open_regular_in_root(HERE, root, os.path.join(os.fsencode(cwd), name))
            if opened < 0:
                return  # exec refuses it
            try:
                start = os.read(opened, 256)
            finally:
                os.close(opened)
            interpreter = _INTERPRETER.match(start)
            if interpreter is None:
                return
            name = interpreter[1]
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise WoodfrogError(
                f'exec: "{path}": permission denied: it is a link in /proc'
            ) from None
    finally:
        os.close(root)


def make_cwd(process: dict[str, Any]) -> None:
    """Make the working directory if the image lacks it."""
    try:
        os.makedirs(process["cwd"], mode=0o755, exist_ok=True)
    except OSError:
        pass  # the chdir tells, with the right name


def take_own_null() -> None:
    """Have the container's /dev/null where stdio is the host's, whose mode root in here could
    change for everybody."""
    null = os.makedev(1, 3)
    for number in range(3):
        try:
            if os.fstat(number).st_rdev != null:
                continue
            own = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        if os.fstat(own).st_rdev == null:
            os.dup2(own, number)
        os.close(own)


def give_stdio(process: dict[str, Any]) -> None:
    """Let the container's user own what it reads from and writes to, as far as that can be."""
    uid = (process.get("user") or {}).get("uid") or 0
    null = os.makedev(1, 3)
    for descriptor in (0, 1, 2):
        try:
            found = os.fstat(descriptor)
            if found.st_uid == uid or found.st_rdev == null:
                continue
            os.fchown(descriptor, uid, found.st_gid)
        except OSError:
            continue


def become(
    process: dict[str, Any],
    path: str,
    preserved: int,
    seccomp: Profile | None,
    labels: Labels,
    hand_over: Callable[[int], None],
    before_exec: Callable[[], None] = lambda: None,
) -> NoReturn:
    """Take on the process's identity, limits and rights, and exec its program.

    `hand_over` gives a listener for the profile's notifications to the outside half. `before_exec`
    runs with no more rights than the program will have.
    """
    user = process.get("user") or {}
    uid, gid = user.get("uid") or 0, user.get("gid") or 0
    env = environment(process)
    masks, _ = capability_masks(process)
    no_new_privs = bool(process.get("noNewPrivileges"))
    close_on_exec_from(HERE, 3 + preserved)
    # The interpreter ignores these two, and exec would hand that down.
    signals.signal(signals.SIGPIPE, signals.SIG_DFL)
    signals.signal(signals.SIGXFSZ, signals.SIG_DFL)
    for name, (soft, hard) in rlimits(process).items():
        try:
            resource.setrlimit(_RLIMITS.index(name[7:]), (_limit(soft), _limit(hard)))
        except (OSError, ValueError) as error:
            raise WoodfrogError(f"cannot set {name} to {soft}:{hard}: {error}") from None
    if labels:
        from woodfrog.runtime.labels import apply

        apply(labels)
    inside = _change_directory(process["cwd"])
    capability.limit_bounding_set(HERE, masks["bounding"])
    prctl(HERE, PR_SET_KEEPCAPS, 1)
    _set_groups(user.get("additionalGids") or [])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if not inside:
        os.chdir(process["cwd"])
    _check_cwd(process["cwd"])
    _, permitted, inheritable = capability.capget(HERE)
    if seccomp and not no_new_privs:
        # Without no_new_privs a filter needs CAP_SYS_ADMIN, which the next step may take away.
        capability.capset(HERE, effective=permitted, permitted=permitted, inheritable=inheritable)
        _install(seccomp, hand_over)
    capability.capset(
        HERE,
        effective=masks["effective"] & permitted,
        permitted=masks["permitted"] & permitted,
        inheritable=masks["inheritable"] & permitted,
    )
    capability.set_ambient(
        HERE, masks["ambient"] & masks["permitted"] & masks["inheritable"] & permitted
    )
    signals.pthread_sigmask(signals.SIG_SETMASK, [])
    if no_new_privs:
        prctl(HERE, PR_SET_NO_NEW_PRIVS, 1)
        if seccomp:
            _install(seccomp, hand_over)
    before_exec()
    try:
        os.execve(path, process["args"], env)
    except OSError as error:
        reason = (error.strerror or "").lower()
        if isinstance(error, FileNotFoundError):
            reason += " (the file is there: is its interpreter or loader missing?)"
        raise WoodfrogError(f"exec {path}: {reason}") from None


def _set_groups(gids: list[int]) -> None:
    try:
        os.setgroups(gids)
    except PermissionError:
        if gids:
            raise
        # A user namespace may forbid it for good: then there are none to drop but its maker's.


def _install(profile: Profile, hand_over: Callable[[int], None]) -> None:
    from woodfrog.kernel.bpf import install

    listener = install(HERE, profile.filter, profile.flags)
    if profile.listener_path:
        hand_over(listener)


def _limit(value: int) -> int:
    return resource.RLIM_INFINITY if value >= 1 << 63 else value


def _change_directory(cwd: str) -> bool:
    try:
        os.chdir(cwd)
    except PermissionError:
        return False  # a file system that distrusts root: the user itself may be allowed
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise WoodfrogError(f"chdir to process.cwd {cwd!r} failed: {reason}") from None
    return True


def _check_cwd(cwd: str) -> None:
    """Refuse a working directory that a leaked descriptor put outside the container's root."""
    try:
        inside = os.getcwd().startswith("/")
    except FileNotFoundError:
        inside = False
    if not inside:
        raise WoodfrogError(f"process.cwd {cwd!r} leads outside the container's root")
