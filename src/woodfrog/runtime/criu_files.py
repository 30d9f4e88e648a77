"""Files of CRIU's that engines look for beside an image, given a work path.

Podman takes a directory without inventory.img for no checkpoint at all. It and others read the
statistics, two numbers that say what the file is and a protobuf, and pack them into archives.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SERVICE_MAGIC = 0x55105940
_STATISTICS_MAGIC = 0x57093306
_DUMP = 1
_RESTORE = 2
_PAGE = 4096


def after_checkpoint(
    directory: str,
    work_path: str,
    log: str,
    statistics: Mapping[str, object],
    warn: Callable[[str], None],
) -> None:
    """Write inventory.img into the image's directory, stats-dump and a log into the work path."""
    _write(
        directory, "inventory.img", b"This checkpoint is woodfrog's: see checkpoint.img.\n", warn
    )
    write_dump_statistics(work_path, statistics, warn)
    write_log(work_path, log, "woodfrog: the checkpoint is complete\n", warn)


def write_dump_statistics(
    work_path: str, statistics: Mapping[str, object], warn: Callable[[str], None]
) -> None:
    """Write stats-dump into the work path."""
    freezing, frozen, collecting, writing, pages = (
        _number(statistics, name)
        for name in ("stop_us", "frozen_us", "collect_us", "write_us", "page_bytes")
    )
    pages //= _PAGE
    # All of pages_scanned, pages_skipped_parent, pages_written; irmap_resolve; pages_lazy.
    values = (freezing, frozen, collecting, writing, pages, 0, pages, 0, 0)
    _write(work_path, "stats-dump", _file(_DUMP, values), warn)


def after_restore(
    work_path: str, log: str, statistics: Mapping[str, object], warn: Callable[[str], None]
) -> None:
    """Write stats-restore and a log into the work path."""
    # pages_compared, pages_skipped_cow, forking_time, restore_time, pages_restored.
    values = (
        0,
        0,
        _number(statistics, "tree_us"),
        _number(statistics, "restore_us"),
        _number(statistics, "page_bytes") // _PAGE,
    )
    _write(work_path, "stats-restore", _file(_RESTORE, values), warn)
    write_log(work_path, log, "woodfrog: the restore is complete\n", warn)


def configured(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return the options in a file of CRIU's own that an annotation names; none if it is no file.

    An option without a value has an empty one.
    """
    try:
        with open(annotations.get("org.criu.config", ""), encoding="utf-8") as file:
            lines = [line.partition("#")[0].replace("=", " ").split() for line in file]
    except (OSError, ValueError):
        return {}
    return {words[0]: "".join(words[1:2]).strip("\"'") for words in lines if words}


def log_name(usual: str, annotations: Mapping[str, str]) -> str:
    """Return the name of the log in the work path, which CRIU's own configuration may change."""
    return os.path.basename(configured(annotations).get("log-file", "")) or usual


def write_log(work_path: str, name: str, text: str, warn: Callable[[str], None]) -> None:
    """Write what became of it; engines show this file, or name it, when it failed."""
    _write(work_path, name, text.encode(errors="surrogateescape"), warn)


def _number(statistics: Mapping[str, object], name: str) -> int:
    value = statistics.get(name)
    return value if isinstance(value, int) else 0


def _file(kind: int, values: tuple[int, ...]) -> bytes:
    entry = b"".join(
        bytes([number << 3]) + varint(value) for number, value in enumerate(values, start=1)
    )
    message = bytes([kind << 3 | 2]) + varint(len(entry)) + entry
    heads = (_SERVICE_MAGIC, _STATISTICS_MAGIC, len(message))
    return b"".join(head.to_bytes(4, "little") for head in heads) + message


def varint(value: int) -> bytes:
    """Return a number as protobuf writes it: seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _write(directory: str, name: str, contents: bytes, warn: Callable[[str], None]) -> None:
    """Write a file anew; what it stands beside is complete, so a failure is only told."""
    path = os.path.join(directory, name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        descriptor = os.open(path, flags, 0o600)
        try:
            os.write(descriptor, contents)
        finally:
            os.close(descriptor)
    except OSError as error:
        warn(f"cannot write {path}, which engines look for: {error.strerror}")
