"""Containerd: a runtime of its CRI plugin, which pods ask for by a RuntimeClass.

The configuration is TOML, in which people have comments: so what we add is text, that can be taken
out again. What comes out is parsed, and refused if it says anything else than it should.
"""

from __future__ import annotations

import copy
import json
import re
import tomllib
from typing import Any

from woodfrog.errors import UsageError, WoodfrogError
from woodfrog.install.editing import Edit, Wanted

PATH = "/etc/containerd/config.toml"
AFTERWARDS = "restart the daemon to have it seen: systemctl restart containerd"

# The plugin that runs pods, by the version of the configuration.
_PLUGINS = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
_KIND = "io.containerd.runc.v2"
_BEGIN, _END, _MARK = "# woodfrog install {", "# woodfrog install }", "# woodfrog install"
_HINT = "edit it by hand, as docs/engines.md says"

Settings = dict[str, Any]


def edits(wanted: Wanted, path: str) -> list[Edit]:
    """Return what makes containerd know us."""
    if wanted.arguments:
        raise UsageError(
            "--runtime-arg: containerd has no flags for runtimes in its files",
            hint="policies may stand in annotations, or in /etc/woodfrog/config.toml",
        )
    return [
        Edit(
            path,
            lambda text: _edited(text, wanted, path),
            lambda text, before: _cleaned(text, before, path),
        )
    ]


def _edited(text: str, wanted: Wanted, path: str) -> str:
    bare = _without(text)
    config = _parsed(bare, path)
    version = config.get("version", 1 if config else 2)
    if version not in _PLUGINS:
        raise WoodfrogError(f"{path} is of version {version}; 2 and 3 are known", hint=_HINT)
    plugin = _PLUGINS[version]
    settings = config.get("plugins", {}).get(plugin, {}).get("containerd", {})
    known = settings.get("runtimes", {})
    if wanted.name in known:
        raise WoodfrogError(
            f"{path} has a runtime {wanted.name} already, which woodfrog install didn't write",
            hint="take it out first, or give --name",
        )
    added = {wanted.name: _runtime(wanted.command, known)}
    default = wanted.name if wanted.default else settings.get("default_runtime_name", "runc")
    if default not in {*known, *added}:
        # What stands in the file replaces the list that is built in.
        added[default] = {"runtime_type": _KIND}

    table = f'plugins."{plugin}".containerd'
    lines = [] if config else [f"version = {version}"]
    if wanted.default:
        bare, done = _with_default(bare, plugin, wanted.name)
        lines += [] if done else [f"[{table}]", _default_line(wanted.name)]
    for name, runtime in added.items():
        lines += _tables(f"{table}.runtimes.{json.dumps(name)}", runtime)
    gap = "\n" if bare and not bare.endswith("\n") else ""
    edited = bare + gap + "\n".join([_BEGIN, *lines, _END]) + "\n"

    expected = copy.deepcopy(config) or {"version": version}
    there = expected.setdefault("plugins", {}).setdefault(plugin, {}).setdefault("containerd", {})
    there.setdefault("runtimes", {}).update(added)
    if wanted.default:
        there["default_runtime_name"] = wanted.name
    if not _says(edited, expected):
        raise WoodfrogError(f"{path} is written in a way that can't be added to", hint=_HINT)
    return edited


def _says(text: str, expected: Settings) -> bool:
    try:
        return tomllib.loads(text) == expected
    except ValueError:
        return False


def _cleaned(text: str, before: str | None, path: str) -> str:
    bare = _without(text)
    same = before is not None and _parsed(bare, path) == _parsed(before, path)
    return before if same and before is not None else bare


def _runtime(command: str, known: Settings) -> Settings:
    """Return the settings of our runtime; the driver of cgroups is runc's, if that is there."""
    options: Settings = {"BinaryName": command}
    if known.get("runc", {}).get("options", {}).get("SystemdCgroup"):
        options["SystemdCgroup"] = True
    return {"runtime_type": _KIND, "options": options}


def _tables(name: str, settings: Settings) -> list[str]:
    """Return settings as lines of TOML."""
    lines = [f"[{name}]"]
    nested = []
    for key, value in settings.items():
        if isinstance(value, dict):
            nested += _tables(f"{name}.{key}", value)
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    return lines + nested


def _default_line(name: str, before: str = "") -> str:
    kept = f": {before}" if before else ""
    return f"default_runtime_name = {json.dumps(name)} {_MARK}{kept}"


def _with_default(text: str, plugin: str, name: str) -> tuple[str, bool]:
    """Set the default in the table that is there; returns the text, and whether there is one."""
    header = rf"""^[ \t]*\[plugins\.["']{re.escape(plugin)}["']\.containerd\][^\n]*\n"""
    table = re.search(header + r"(?:(?![ \t]*\[)[^\n]*(?:\n|\Z))*", text, re.MULTILINE)
    if table is None:
        return text, False
    setting = re.compile(r"^([ \t]*)default_runtime_name[^\n]*", re.MULTILINE)
    lines = table[0]
    if found := setting.search(lines):
        line = found[1] + _default_line(name, found[0].strip())
        lines = lines[: found.start()] + line + lines[found.end() :]
    else:
        first, _, rest = lines.partition("\n")
        lines = f"{first}\n{_default_line(name)}\n{rest}"
    return text[: table.start()] + lines + text[table.end() :], True


def _without(text: str) -> str:
    """Return a text without what we have added to it."""
    block = rf"^{re.escape(_BEGIN)}\n.*?^{re.escape(_END)}\n"
    text = re.sub(block, "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(rf"^default_runtime_name[^\n]* {_MARK}\n", "", text, flags=re.MULTILINE)
    return re.sub(rf"default_runtime_name = \"[^\"\n]*\" {_MARK}: ", "", text)


def _parsed(text: str, path: str) -> Settings:
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise WoodfrogError(f"{path} is not TOML: {error}", hint=_HINT) from None
