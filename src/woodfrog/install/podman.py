"""Podman: a file of our own beside its configuration, and who answers for CRIU."""

from __future__ import annotations

import json
import shlex
import shutil

from woodfrog.errors import UsageError
from woodfrog.install.editing import Edit, Wanted

PATH = "/etc/containers/containers.conf.d/woodfrog.conf"
CRIU = "/usr/local/bin/criu"
# Whose logs podman reads, for better messages. What a file says replaces the whole list.
_READ_AS_JSON = ("crun", "runc", "kata", "runsc", "youki")
AFTERWARDS = "podman sees it at its next command"


def edits(wanted: Wanted, path: str) -> list[Edit]:
    """Return what makes podman know us, and lets it make checkpoints."""
    if wanted.arguments:
        raise UsageError(
            "--runtime-arg: podman has no flags for runtimes in its files",
            hint="policies may stand in annotations, or in /etc/woodfrog/config.toml",
        )
    files = [Edit(path, lambda there: _configuration(wanted), lambda there, before: before or "")]
    if shutil.which("criu") is None or _is_ours(CRIU):
        files.append(criu(wanted.command, CRIU))
    return files


def criu(command: str, path: str) -> Edit:
    """Return a `criu` that is nothing but our answer to podman's question for its version."""
    text = f'#!/bin/sh\nexec {shlex.quote(command)} criu "$@"\n'
    return Edit(path, lambda there: text, lambda there, before: before or "", mode=0o755)


def _is_ours(path: str) -> bool:
    """Tell whether a file is what `criu` makes."""
    try:
        with open(path, "rb") as file:
            text = file.read(1 << 16)
    except FileNotFoundError:
        return False
    return text.startswith(b"#!/bin/sh\nexec ") and text.endswith(b' criu "$@"\n')


def _configuration(wanted: Wanted) -> str:
    lines = ["[engine]"]
    if wanted.default:
        lines.append(f"runtime = {json.dumps(wanted.name)}")
    known = json.dumps([*_READ_AS_JSON, wanted.name])
    lines += [
        f"runtime_supports_json = {known}",
        "",
        "[engine.runtimes]",
        f"{json.dumps(wanted.name)} = [{json.dumps(wanted.command)}]",
    ]
    return "\n".join(lines) + "\n"
