"""Docker: a runtime in the daemon's configuration, and a command of its client's."""

from __future__ import annotations

import json
import shlex
from typing import Any

from woodfrog.errors import WoodfrogError
from woodfrog.install.editing import Edit, Wanted

PATH = "/etc/docker/daemon.json"
PLUGINS = "/usr/local/lib/docker/cli-plugins"
AFTERWARDS = "restart the daemon to have it seen: systemctl restart docker"


def edits(wanted: Wanted, path: str) -> list[Edit]:
    """Return what makes the daemon and the client know us."""
    daemon = Edit(
        path,
        lambda text: _edited(text, wanted, path),
        lambda text, before: _cleaned(text, before, wanted.name, path),
    )
    return [daemon, plugin(wanted.command, PLUGINS)]


def plugin(command: str, directory: str) -> Edit:
    """Return the client's `docker woodfrog`: a script that is nothing but our own command."""
    text = f'#!/bin/sh\nexec {shlex.quote(command)} docker -- "$@"\n'
    return Edit(
        f"{directory}/docker-woodfrog",
        lambda there: text,
        lambda there, before: before or "",
        mode=0o755,
    )


def _edited(text: str, wanted: Wanted, path: str) -> str:
    config = _parsed(text, path)
    entry: dict[str, Any] = {"path": wanted.command}
    if wanted.arguments:
        entry["runtimeArgs"] = list(wanted.arguments)
    changed = config | {
        "runtimes": config.get("runtimes", {}) | {wanted.name: entry},
        # Without this the daemon makes no checkpoints.
        "experimental": True,
    }
    if wanted.default:
        changed["default-runtime"] = wanted.name
    return text if changed == config else _written(changed, text)


def _cleaned(text: str, before: str | None, name: str, path: str) -> str:
    config = _parsed(text, path)
    cleaned = _without(config, name)
    if before is None:
        return text if cleaned == config else _written(cleaned, text)
    former = _parsed(before, path)
    if name in former.get("runtimes", {}):
        cleaned["runtimes"] = cleaned.get("runtimes", {}) | {name: former["runtimes"][name]}
    for key in ("default-runtime", "experimental"):
        if key == "default-runtime" and key in cleaned:
            continue  # somebody has chosen another since
        cleaned.pop(key, None)
        if key in former:
            cleaned[key] = former[key]
    return before if cleaned == former else _written(cleaned, text)


def _without(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration that doesn't know the runtime of this name."""
    cleaned = dict(config)
    others = {key: entry for key, entry in config.get("runtimes", {}).items() if key != name}
    if others:
        cleaned["runtimes"] = others
    else:
        cleaned.pop("runtimes", None)
    if cleaned.get("default-runtime") == name:
        del cleaned["default-runtime"]
    return cleaned


def _parsed(text: str, path: str) -> dict[str, Any]:
    try:
        config = json.loads(text or "{}")
    except ValueError as error:
        raise WoodfrogError(f"{path} is not JSON: {error}", hint="mend it first") from None
    if not isinstance(config, dict) or not isinstance(config.get("runtimes", {}), dict):
        raise WoodfrogError(f"{path} is not a configuration of dockerd's", hint="mend it first")
    return config


def _written(config: dict[str, Any], like: str) -> str:
    """Return JSON indented as a text is."""
    lines = like.splitlines()[1:2]
    width = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
    indent: str | int = lines[0][:width] if width else 4
    return json.dumps(config, indent=indent, ensure_ascii=False) + "\n"
