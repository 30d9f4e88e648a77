"""Containers of real programs, and how often the tests freeze them."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from bundles import Bundle, bind
from containers import Container, Woodfrog

PROGRAMS = Path(__file__).parent / "programs"
MOMENTS = int(os.environ.get("WOODFROG_MOMENTS", "3"))
CYCLES = int(os.environ.get("WOODFROG_CYCLES", "30"))
KILLS = int(os.environ.get("WOODFROG_KILLS", "10"))


def program(woodfrog: Woodfrog, command: list[str], name: str = "bundle") -> Bundle:
    """Return a bundle that sees the host's programs, and ours in /programs."""
    bundle = Bundle(woodfrog.directory / name, command)
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(PROGRAMS, "/programs"))
    bundle.add_host_programs()
    bundle.process["env"].append("PYTHONDONTWRITEBYTECODE=1")
    return bundle


def compiled(
    woodfrog: Woodfrog, build: Callable[..., Path], source: str, *arguments: str
) -> Bundle:
    """Return a bundle of a C program of ours."""
    built = build(PROGRAMS / source)
    bundle = program(woodfrog, ["/work/" + source.removesuffix(".c"), *arguments])
    shutil.copy(built, bundle.work / source.removesuffix(".c"))
    return bundle


def compiled_go(woodfrog: Woodfrog, source: str) -> Bundle:
    """Return a bundle of a Go program of ours."""
    bundle = program(woodfrog, ["/work/program"])
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(woodfrog.directory),
        "GOCACHE": str(woodfrog.directory / "go"),
        "GO111MODULE": "off",
        "GOFLAGS": "-trimpath",
    }
    command = ["go", "build", "-o", str(bundle.work / "program"), str(PROGRAMS / source)]
    subprocess.run(command, check=True, env=environment, timeout=300)
    return bundle


def thaw_again(
    container: Container, number: int = 0, *flags: str, restore: tuple[str, ...] = ()
) -> Container:
    """Freeze a container and return the new one in which it goes on."""
    woodfrog = container.woodfrog
    image = woodfrog.directory / f"image{number}"
    container.checkpoint(image, *flags)
    container.wait()
    container.delete()
    restored = woodfrog.restore(container.bundle, image, *restore)
    (image / "checkpoint.img").unlink()
    return restored


def changes(before: object, after: object, where: str = "") -> list[str]:
    """Return every place in which two nested values differ, in words."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys([*before, *after])
        return [
            change
            for key in keys
            for change in changes(before.get(key), after.get(key), f"{where} {key}")
        ]
    if isinstance(before, list) and isinstance(after, list):
        gone = [f"{where}: gone: {item}" for item in before if item not in after]
        return gone + [f"{where}: new: {item}" for item in after if item not in before]
    return [] if before == after else [f"{where}: was {before}, is {after}"]
