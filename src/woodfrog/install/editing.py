"""Configuration files of others: edited, shown as a diff, and put back as they were."""

from __future__ import annotations

import difflib
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

from woodfrog.errors import WoodfrogError, while_


@dataclass(frozen=True)
class Wanted:
    """What an engine is to know of us."""

    name: str  # under which it offers this runtime
    command: str  # the path of our command
    arguments: tuple[str, ...] = ()  # given to it before each command
    default: bool = False  # whether it is the runtime of containers that ask for none


@dataclass(frozen=True)
class Edit:
    """A file of an engine, and how we come into it and out of it. No text: no file."""

    path: str
    edited: Callable[[str], str]  # the text there → with us in it
    # The text there, and the one before we came (None: nobody knows) → without us.
    cleaned: Callable[[str, str | None], str]
    mode: int = 0o644

    def install(self) -> Change:
        """Return the change that makes us known."""
        now = _read(self.path)
        known = os.path.exists(_backup(self.path))
        return Change(self.path, now, self.edited(now), self.mode, backup=None if known else now)

    def uninstall(self) -> Change:
        """Return the change that takes us out again."""
        now, known = _read(self.path), os.path.exists(_backup(self.path))
        before = _read(_backup(self.path)) if known else None
        return Change(self.path, now, self.cleaned(now, before), self.mode, forget=known)


@dataclass(frozen=True)
class Change:
    """One file as it is and as it shall be."""

    path: str
    before: str
    after: str
    mode: int
    backup: str | None = None  # what is to be kept beside it
    forget: bool = False  # ... or no more

    def __bool__(self) -> bool:
        return self.before != self.after or self.forget

    def diff(self) -> str:
        """Return it as a unified diff."""
        lines = difflib.unified_diff(
            self.before.splitlines(),
            self.after.splitlines(),
            self.path if self.before else "/dev/null",
            self.path if self.after else "/dev/null",
            lineterm="",
        )
        return "".join(f"{line}\n" for line in lines)

    def apply(self) -> None:
        """Write the file; who reads it meanwhile sees the old or the new one."""
        with while_(f"editing {self.path}"):
            if self.backup is not None:
                _write(_backup(self.path), self.backup, self.mode)
            if self.after:
                _write(self.path, self.after, self.mode)
            elif self.before:
                os.unlink(os.path.realpath(self.path))
            if self.forget:
                os.unlink(_backup(self.path))


def own_command() -> str:
    """Return the path at which engines find this very woodfrog."""
    clone, found, _ = __file__.rpartition("/src/woodfrog/")
    command = f"{clone}/woodfrog" if found else os.path.abspath(sys.argv[0])
    if os.path.basename(command) != "woodfrog" or not os.access(command, os.X_OK):
        raise WoodfrogError(
            "cannot tell where the command of this woodfrog is",
            hint="name it: --runtime=/usr/local/bin/woodfrog",
        )
    return command


def _backup(path: str) -> str:
    directory, name = os.path.split(os.path.realpath(path))
    return f"{directory}/.{name}.before-woodfrog"  # hidden: some engines read all that is there


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _write(path: str, text: str, mode: int) -> None:
    path = os.path.realpath(path)
    directory = os.path.dirname(path)
    os.makedirs(directory, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".woodfrog-", dir=directory)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            try:
                there = os.stat(path)
            except FileNotFoundError:
                os.fchmod(descriptor, mode)
            else:
                os.fchmod(descriptor, there.st_mode & 0o7777)
                os.fchown(descriptor, there.st_uid, there.st_gid)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.rename(name, path)
    except BaseException:
        os.unlink(name)
        raise
