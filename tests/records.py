"""Two images of one container, compared record by record: what a restore has changed."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_intdigest

from woodfrog.image.container_file import Reader
from woodfrog.image.layout import PAGE

# What may differ, by program (any, if there is none) and place in a record, and why.
_MAY_DIFFER = (
    ("", r"container\.(id|config)", "the new container's own"),
    ("", r"container\.(monotonic|boottime)_ns", "clocks go on"),
    ("", r"process\.(interval|posix)_timers\[\]\.left_.s|timerfd\.(left|at)_ns", "clocks go on"),
    ("", r"process\.posix_timers\[\]\.(at_ns|rung)", "it rings on, and at_ns is of two calls"),
    ("", r"process\.threads\[\]\.(registers|xstate)", "the program waits, and counts"),
    ("", r"process\.threads\[\]\.socket_wait\.left_us", "README: a resumed wait"),
    ("", r"stdio\.was", "what came from outside is another's"),
    ("", r"tmpfs\.entries\[\]\.[am]time.*", "/dev is made anew by `create`"),
    ("deleted_directory", r"deleted-file\.mtime.*", "to fill a FIFO is to write to it"),
    ("deleted_file", r"deleted-file\.path", "another has the name by now; O_TMPFILE numbers"),
    ("deleted_file", r"deleted\.flags", "O_TMPFILE has a name by now"),
    (
        "deleted_mapping|linked_mappings|namespace_ghosts",
        r"deleted-file\.atime.*",
        "it is mapped, and so read",
    ),
    ("mounted_sockets", r"mount-tree\.bases\[\]\.entries.*\.[am]time.*", "sockets are bound anew"),
    ("mounted_ghosts", r"deleted-file\.[am]time.*", "it is mapped, or a FIFO that is filled"),
    ("mounted_ghosts", r"(deleted-file\.path|mount-tree.*\.root)", "another has the name by now"),
    (
        "namespace_ghosts",
        r"mount-namespace\.tree\.bases\[\]\.entries.*\.[am]time.*|deleted-file\.mtime.*",
        "deleted files are made there, and FIFOs filled",
    ),
    ("namespace_ghosts", r"deleted-file\.path", "O_TMPFILE numbers"),
    ("hugetlbfs", r"deleted-file\.path", "O_TMPFILE numbers"),
    ("hugetlbfs", r"deleted-file\.atime.*", "it is filled by being mapped"),
    ("directory_tmpfs", r"regular\.position", "a new directory counts its entries anew"),
    ("huge_pages", r"process\.memory\.pages.*", "what was given back of one is zeros in one"),
    ("hugetlb", r"process\.memory\.mappings\[\]\.no_reserve", "a child has none reserved"),
    ("network", r"network\.added\.addresses\[\]\.attributes", "lifetimes go on"),
    ("network", r"network\.added\.routes\[\]\.(header|attributes)", "lifetimes go on"),
    ("tun", r"network\.added\.addresses\[\]\.attributes", "the kernel had made some by itself"),
    ("network", r"network\.links\[\]\.running", "the kernel tells a moment later"),
    (
        "nested_network|namespace_bound|tcp_nested",
        r"network(-namespace\.network)?\.links\[\]\.running",
        "the kernel tells a moment later",
    ),
    ("cut_short", r"pty-master\.output", "who writes there goes on, where there is room"),
    ("cut_short", r"unix-socket\.rights\[\]\.at_end", "who sends goes on, in other parts"),
    ("posix_queue", r"message-queue\.(unlinked\.)?name", "another has the name by now"),
    ("timer_rung", r"process\.(threads\[\]\.)?pending.*", "the timer rings once more"),
    ("timer_absolute", r"process\.(pending.*|posix_timers.*)", "one has rung by then"),
    ("waits_io_uring", r"io-uring\.owner", "the first thread has made it, and may be who uses it"),
    (
        "io_uring(_reused|_overflow)?",
        r"container\.losses.*|io-uring\.(completed|ring|cancelled.*|overflown.*)",
        "what was cancelled is completed",
    ),
    ("hugetlbfs", r"mount-tree\.bases\[\]\.entries.*\.[am]time.*", "deleted files are made there"),
    ("mounts", r"mount-tree\.bases\[\]\.entries.*", "the work directory is the overlay's own"),
    (
        "namespace_mounts",
        r"mount-namespace\.tree\.bases\[\]\.entries\[\]\.[am]time.*",
        "README: what mounts cover in a user namespace is gone, and made anew by its root's times",
    ),
    (
        "unix_elsewhere",
        r"mount-namespace\.tree\.bases\[\]\.entries\[\]\.[am]time.*",
        "sockets are bound anew",
    ),
    (
        "socket_owners|tcp_(backlog|connections|multipath|nested|signed|urgent|waiting)",
        r"tcp-socket\.options.*",
        "buffers grow with what is in them",
    ),
    ("packets", r"packet-socket\.taking\.contents.*", "of the block that is being filled"),
    (
        "socket_owners|tcp_(backlog|signed|multipath|ends|urgent)",
        r"tcp-socket\.connection\.(timestamp|window)",
        "clocks go on",
    ),
    ("tcp_connections", r"tcp-socket\.state", "who is being closed may be done"),
    (
        "tcp_connections|tcp_nested",
        r"tcp-socket\.connection\.(timestamp|window|send|unsent|receive|received_to)",
        "data arrive",
    ),
)
# What tells records of one kind apart: the first of these that they have.
_NAMES = ("id", "pid", "destination", "path", "name", "namespaces")
# Numbers that the kernel gives: it only counts that they are the same at several records.
_NUMBERED = {
    ("pipe", "pipe"): "pipe",
    ("fifo", "inode"): "fifo",
    ("message-queue", "queue"): "message queue",
    ("unix-socket", "inode"): "unix socket",
    ("unix-socket", "pending"): "unix socket",
    ("unix-socket", "pair"): "pair of unix sockets",
}
# Lists without an order of their own, and what tells their elements apart.
_UNORDERED = {"watches": ("descriptor", "data"), "options": ("level", "name"), "entries": ("path",)}
_UNORDERED |= {"routes": ("header", "attributes"), "neighbours": ("header", "attributes")}


def differences(before: Path, after: Path, program: str) -> list[str]:
    """Return where two images of a program's container differ, and must not."""
    first, second = _facts(before), _facts(after)
    found = []
    for place in dict.fromkeys([*first, *second]):
        was, now = first.get(place, "absent"), second.get(place, "absent")
        if was != now and not _may_differ(place, program):
            found.append(f"{place}: {was!r:.200} became {now!r:.200}")
    return found


def _may_differ(place: str, program: str) -> bool:
    general = re.sub(r":[^.]*", "", re.sub(r"\[[^\]]*\]", "[]", place), count=1)
    return any(
        (not which or re.fullmatch(which, program)) and re.fullmatch(pattern, general)
        for which, pattern, _ in _MAY_DIFFER
    )


def _facts(image: Path) -> dict[str, object]:
    """Return all that an image says, by its place."""
    with Reader(str(image)) as reader:
        facts: dict[str, object] = {}
        numbers: dict[str, list[int]] = defaultdict(list)
        places: set[str] = set()
        for record in reader.raw_records():
            kind = record["kind"]
            for field, value in record.items():
                if family := _NUMBERED.get((kind, field)):
                    seen = numbers[family]
                    several = value if isinstance(value, list) else [value]
                    seen += [one for one in several if one not in seen]
                    record[field] = [seen.index(one) for one in several if one]
            if kind in ("mount-tree", "mount-namespace") and (tree := record.get("tree", record)):
                _number_groups(tree["nodes"], numbers["group of mounts"])
            name = (
                "" if kind == "container" else next((record[n] for n in _NAMES if n in record), "")
            )
            place = f"{kind}:{name}"
            while place in places:
                place += "'"  # tmpfs of one destination hide each other; their order tells
            facts.update(_flat(_with_contents(record, reader), place))
    return facts


def _number_groups(nodes: list[dict[str, Any]], seen: list[int]) -> None:
    """Number groups of mounts by their order: the kernel gives the lowest number that is free."""
    for node in nodes:
        for field in ("group", "master"):
            if (number := node.get(field, 0)) > 0:
                seen += [number] if number not in seen else []
                node[field] = seen.index(number) + 1


def _with_contents(value: Any, reader: Reader) -> Any:
    """Put what is in the page store in the place of where it is there."""
    if isinstance(value, list):
        return [_with_contents(one, reader) for one in value]
    if not isinstance(value, dict):
        return value
    found = {key: _with_contents(one, reader) for key, one in value.items() if key != "store"}
    if "store" in value and "extents" in value:
        at = value["store"]
        found["extents"] = {}
        for start, length in value["extents"]:
            found["extents"] |= _pages(reader, start, length, at)
            at += length
    if "pages" in value:
        # Where there are some; what is in them the program itself has to look at.
        pages = [range(start, start + length, PAGE) for start, length, _ in value["pages"]]
        found["pages"] = {f"{page:x}": True for some in pages for page in some}
    return found


def _pages(reader: Reader, start: int, length: int, at: int) -> dict[str, int]:
    """Return a digest of each page."""
    memory = reader.read_memory(at, length)
    return {
        f"{start + page:x}": xxh3_64_intdigest(memory[page : page + PAGE])
        for page in range(0, length, PAGE)
    }


def _flat(value: Any, place: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _flat(one, f"{place}.{key}")
    elif isinstance(value, list):
        yield f"{place}.length", len(value)
        keys = _UNORDERED.get(place.rpartition(".")[2], ())
        for position, one in enumerate(value):
            if keys and isinstance(one, dict):
                position = ",".join(f"{one.get(key)}" for key in keys)
            yield from _flat(one, f"{place}[{position}]")
    else:
        yield place, value
