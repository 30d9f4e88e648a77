"""What is in an image, for people and for programs.

Works from the records as plain mappings, so that it shows what is there without the modules that
could restore it. They are untrusted: what doesn't have the expected shape ends in an ImageError,
and no byte of them reaches a terminal unless it is printable.
"""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from typing import Any, NamedTuple

import msgspec

from woodfrog.errors import ImageError
from woodfrog.image.chain import Chain
from woodfrog.image.layout import IMAGE_NAME
from woodfrog.kernel import cpuid

Raw = dict[str, Any]

# argv can have megabytes; a line on a terminal can't.
_MOST_ARGUMENT_BYTES = 4096
_MOST_COMMAND_LETTERS = 100
_MOST_FILES_SHOWN = 20

_STATES_IN_USE = slice(512, 520)  # of an XSAVE area


class File(NamedTuple):
    """One slot of a process's descriptor table."""

    number: int
    kind: str
    what: str


class Process(NamedTuple):
    """What is shown of a process."""

    pid: int
    parent: int
    command: list[str]
    executable: str
    threads: list[Raw]
    memory_bytes: int
    mappings: int
    files: list[File]
    note: str


def render(reader: Chain, as_json: bool) -> str:
    """Return what is in an image, as text or as one JSON document."""
    try:
        records = reader.raw_records()
        processes = _processes(reader, records)
        return _json(reader, records, processes) if as_json else _text(reader, records, processes)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ImageError(f"{IMAGE_NAME} has records of a shape that makes no sense") from error


def readable(name: bytes | str) -> str:
    """Return a name that can be shown on a terminal, whatever bytes it has."""
    text = os.fsdecode(name)
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(letter: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))


def size(count: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    if count < 1024:
        return f"{count} B"
    amount, units = count / 1024, iter(("KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while amount >= 1000 and unit != "TiB":
        amount, unit = amount / 1024, next(units)
    return f"{amount:.1f} {unit}" if amount < 100 else f"{amount:.0f} {unit}"


def _processes(reader: Chain, records: list[Raw]) -> list[Process]:
    deleted = {one["id"]: one["path"] for one in records if one["kind"] == "deleted-file"}
    files = {
        record["id"]: record | {"path": deleted[record["deleted"]]}
        if record.get("deleted") in deleted
        else record
        for record in records
        if "id" in record and "flags" in record
    }
    found = []
    for record in records:
        if record["kind"] == "process":
            found.append(_process(reader, record, files))
        elif record["kind"] == "zombie":
            name, ended = [readable(record["name"])], os.waitstatus_to_exitcode(record["status"])
            how = f"zombie, killed by signal {-ended}" if ended < 0 else f"zombie, exit {ended}"
            found.append(Process(record["pid"], record["parent"], name, "", [], 0, 0, [], how))
    return found


def _process(reader: Chain, record: Raw, files: dict[int, Raw]) -> Process:
    memory, threads = record["memory"], record["threads"]
    return Process(
        pid=int(record["pid"]),
        parent=int(record["parent"]),
        command=_command(reader, memory) or [readable(threads[0]["name"])],
        executable=readable(memory["executable"]),
        threads=[{"tid": int(one["tid"]), "name": readable(one["name"])} for one in threads],
        memory_bytes=sum(int(length) for _, length, _ in memory["pages"]),
        mappings=len(memory["mappings"]),
        files=[
            File(int(number), str(files[file]["kind"]), _what(files[file]))
            for number, file, _ in record["descriptors"]
        ],
        note=f"stopped by signal {record['stopped_by']}" if record["stopped_by"] else "",
    )


def _command(reader: Chain, memory: Raw) -> list[str]:
    """Return the arguments as they stand in the process's memory."""
    begin, end = memory["arg_start"], memory["arg_end"]
    length = min(end - begin, _MOST_ARGUMENT_BYTES)
    for start, extent, store in memory["pages"]:
        if start <= begin and begin + length <= start + extent and length > 0:
            try:
                arguments = reader.read_memory(store + begin - start, length)
            except ImageError:
                return []  # damaged memory is for `verify` to tell
            return [readable(one) for one in arguments.rstrip(b"\0").split(b"\0")]
    return []


def _what(file: Raw) -> str:
    """Return what tells one file of a kind from another."""
    name = file.get("path", file.get("was", file.get("name", b"")))
    parts = [readable(name)] if isinstance(name, bytes) and name else []
    if file["kind"] == "pidfd":
        parts.append(f"process {int(file['pid'])}" if file["pid"] else "of an ended process")
    if file["kind"] == "proc-file":
        parts[:0] = [f"process {int(file['pid'])}"]
    if watches := file.get("watches"):
        parts.append(f"{len(watches)} watched")
    if file.get("port"):
        parts.append(f"port {int(file['port'])}")
    if file.get("backlog"):
        parts.append("listening")
    if file.get("reset"):
        parts.append("will be reset")
    if connection := file.get("connection"):
        end = "outside" if connection["outside"] else "inside"
        parts.append(f"connected to port {connection['remote_port']} {end}")
    waiting = sum(len(piece) for piece in [*file.get("packets", []), *file.get("queue", [])])
    if rights := file.get("rights"):
        parts.append(f"{sum(len(one['files']) for one in rights)} files in flight")
    if waiting:
        parts.append(f"{size(waiting)} waiting")
    return ", ".join(parts)


def _json(reader: Chain, records: list[Raw], processes: list[Process]) -> str:
    document = {
        "image": msgspec.to_builtins(reader.header),
        "cpu": next((one["cpu"] for one in records if one["kind"] == "container"), None),
        "processes": [
            process._asdict() | {"files": [file._asdict() for file in process.files]}
            for process in processes
        ],
        "records": records,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def _text(reader: Chain, records: list[Raw], processes: list[Process]) -> str:
    lines = [*_heading(reader, records), ""]
    rows = [("PID", "THREADS", "MEMORY", "COMMAND")]
    details: list[list[str]] = [[]]
    for process, branch, below in _as_tree(processes):
        command = " ".join(process.command)
        if len(command) > _MOST_COMMAND_LETTERS:
            command = command[: _MOST_COMMAND_LETTERS - 1] + "…"
        note = f"  [{process.note}]" if process.note else ""
        memory = size(process.memory_bytes) if process.threads else "-"
        threads = str(len(process.threads)) if process.threads else "-"
        rows.append((str(process.pid), threads, memory, f"{branch}{command}{note}"))
        details.append([f"{below}  {line}" for line in _file_lines(process.files)])
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    indent = " " * (sum(widths) + 2 * 3)
    for row, more in zip(rows, details, strict=True):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[3]]))
        lines += [indent + line for line in more]
    return "\n".join([*lines, "", *_rest(records)]).rstrip() + "\n"


def _heading(reader: Chain, records: list[Raw]) -> list[str]:
    header = reader.header
    made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(header.made))
    names = [readable(record["id"]) for record in records if record["kind"] == "container"]
    version = ".".join(map(str, header.version))
    compressed = "" if header.compression == "none" else f", compressed by {header.compression}"
    return [
        f"container {names[0] if names else '?'}, frozen {made}",
        f"on {readable(header.hostname)} (Linux {readable(header.kernel)}, "
        f"{readable(header.machine)}) by woodfrog {readable(header.woodfrog)}",
        f"{IMAGE_NAME}: {size(header.file_bytes)}, of which memory {size(header.page_bytes)}"
        f"{compressed}; {header.record_count} records; format {version}",
        *([f"builds on a parent image, whose digest is {header.parent}"] if header.parent else ()),
        *(_cpu_line(record["cpu"], records) for record in records if record["kind"] == "container"),
    ]


def _cpu_line(cpu: Raw, records: list[Raw]) -> str:
    used = 0
    for record in records:
        for thread in record["threads"] if record["kind"] == "process" else ():
            used |= int.from_bytes(thread["xstate"][_STATES_IN_USE], "little")
    names = ", ".join(cpuid.state_names(used))
    return f"CPU {readable(cpu['model'])}, {len(cpu['features'])} features; in use: {names}"


def _file_lines(files: list[File]) -> list[str]:
    """Return a line for each file, with all descriptors that look the same in one."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for file in files:
        numbers.setdefault((file.kind, file.what), []).append(file.number)
    lines = [
        f"{','.join(map(str, sorted(slots)))} {kind}{f' {what}' if what else ''}"
        for (kind, what), slots in sorted(numbers.items(), key=lambda item: min(item[1]))
    ]
    if len(lines) > _MOST_FILES_SHOWN:
        more = len(lines) - _MOST_FILES_SHOWN
        lines[_MOST_FILES_SHOWN:] = [f"… and {more} more (--json shows all)"]
    return lines


def _as_tree(processes: list[Process]) -> list[tuple[Process, str, str]]:
    """Order processes below their parents; give of each what to draw before it and below it."""
    known = {process.pid for process in processes}
    children: dict[int, list[Process]] = {}
    for process in processes:
        parent = process.parent if process.parent in known else 0
        children.setdefault(parent, []).append(process)
    drawn: list[tuple[Process, str, str]] = []
    seen: set[int] = set()
    # Not by recursion: a chain of processes can be long, and a hostile one a ring.
    waiting = [(process, "", "") for process in reversed(children.get(0, []))]
    while waiting:
        process, branch, below = waiting.pop()
        if process.pid in seen:
            continue
        seen.add(process.pid)
        drawn.append((process, branch, below))
        offspring = children.get(process.pid, [])
        for child in reversed(offspring):
            last = child is offspring[-1]
            waiting.append(
                (child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))
            )
    drawn += [(process, "? ", "") for process in processes if process.pid not in seen]
    return drawn


def _rest(records: list[Raw]) -> list[str]:
    """Return lines about what doesn't belong to one process."""
    shown = {"process", "zombie", "container", "layer", "known-file"}
    others = Counter(
        record["kind"]
        for record in records
        if record["kind"] not in shown and "flags" not in record
    )
    files = sum(1 for record in records if "flags" in record and "id" in record)
    lines = [f"{files} open files" + "".join(f", {n} {kind}" for kind, n in sorted(others.items()))]
    for record in records:
        if record["kind"] == "layer":
            lines.append(_layer(record))
        if record["kind"] == "container":
            lines += [f"lost at the checkpoint: {readable(loss)}" for loss in record["losses"]]
    return lines


def _layer(record: Raw) -> str:
    """Return a line about what has changed in the root file system."""
    entries = record["entries"]
    files = [one for one in entries if stat.S_ISREG(one["mode"]) and not one.get("link")]
    stored = sum(int(length) for one in files for _, length in one.get("extents", ()))
    return (
        f"changes of the root file system: {len(entries)} files and directories with"
        f" {size(stored)}, {len(record['removed'])} removed"
    )
