"""What security modules call a process and its files: AppArmor profiles and SELinux labels.

Where the host has no such module, a config's labels are warned about and have no effect.
"""

from __future__ import annotations

import os

from woodfrog.errors import WoodfrogError
from woodfrog.kernel import mounts as m
from woodfrog.kernel.caller import HERE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# What is written to the first of some files in /proc/thread-self that is there.
Labels = list[tuple[tuple[str, ...], str]]


def has_apparmor() -> bool:
    """Tell whether this host confines processes by AppArmor."""
    try:
        with open("/sys/module/apparmor/parameters/enabled", "rb", buffering=0) as file:
            return file.readall().startswith(b"Y")
    except OSError:
        return False


def has_selinux() -> bool:
    """Tell whether this host confines processes by SELinux."""
    return os.path.exists("/sys/fs/selinux/enforce")


def warnings(process: dict[str, Any], linux: dict[str, Any]) -> list[str]:
    """Say which labels have no effect, since the host has no use for them."""
    found = []
    for place, value, module, is_there in (
        ("process.apparmorProfile", process.get("apparmorProfile"), "AppArmor", has_apparmor),
        ("process.selinuxLabel", process.get("selinuxLabel"), "SELinux", has_selinux),
        ("linux.mountLabel", linux.get("mountLabel"), "SELinux", has_selinux),
    ):
        if value and not is_there():
            found.append(f"{place} has no effect: {module} is not enabled on this host")
    return found


def choose(process: dict[str, Any]) -> Labels:
    """Return what is to be written where before the exec; asked while /sys is the host's."""
    chosen: Labels = []
    if (profile := process.get("apparmorProfile")) and has_apparmor():
        chosen.append((("attr/apparmor/exec", "attr/exec"), f"exec {profile}"))
    if (label := process.get("selinuxLabel")) and has_selinux():
        chosen.append((("attr/exec",), label))
    return chosen


def apply(chosen: Labels) -> None:
    """Have the next exec take on what was chosen."""
    for places, value in chosen:
        try:
            _write(places, value)
        except OSError as error:
            module = "apparmor" if value.startswith("exec ") else "selinux"
            raise WoodfrogError(
                f"{module}: cannot take on {value.removeprefix('exec ')!r}:"
                f" {(error.strerror or '').lower()}",
                hint="is it loaded on the host?",
            ) from None


def _write(places: tuple[str, ...], value: str) -> None:
    for place in places:
        try:
            descriptor = os.open(f"/proc/thread-self/{place}", os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if place == places[-1]:
                raise
            continue
        try:
            # A container could have put a file of its own there, and stay unconfined.
            if m.file_system_type(HERE, descriptor) != m.PROC_SUPER_MAGIC:
                raise WoodfrogError("the container's /proc is no procfs: its label can't be set")
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
        return


def with_context(data: str, label: str) -> str:
    """Return the options of a new file system whose files are to have this label."""
    if not label or not has_selinux():
        return data
    return ",".join(filter(None, (data, f'context="{label}"')))
