"""What `inspect` shows, of sound images and of those that want to fool a terminal."""

import json
from pathlib import Path
from typing import Any

import pytest
from image_building import PAGE, Memory

from woodfrog.errors import ImageError
from woodfrog.image.container_file import Reader, Writer
from woodfrog.image.inspect import readable, render, size


def process(pid: int, parent: int, **more: Any) -> dict[str, Any]:
    memory = {
        "arg_start": 0x1000,
        "arg_end": 0x1000 + 17,
        "pages": [[0x0, PAGE, 0], [0x1000, PAGE, PAGE]],
        "mappings": [{}, {}, {}],
        "executable": b"/usr/bin/frog",
    }
    return {
        "kind": "process",
        "pid": pid,
        "parent": parent,
        "stopped_by": 0,
        "memory": memory,
        "threads": [thread(pid, b"frog"), thread(pid + 1, b"worker", b"\x06")],
        "descriptors": [[0, 1, False], [2, 1, False], [5, 2, True]],
    } | more


def thread(tid: int, name: bytes, states: bytes = b"\0") -> dict[str, Any]:
    return {"tid": tid, "name": name, "xstate": bytes(512) + states}


FILES = [
    {"kind": "regular", "id": 1, "flags": 2, "path": b"/dev/null"},
    {"kind": "unix-socket", "id": 2, "flags": 2, "name": b"\0abstract", "backlog": 5, "queue": []},
]
CONTAINER = {
    "kind": "container",
    "id": "pond",
    "losses": ["2 TCP connections"],
    "config": b"{}",
    "cpu": {"model": "Heart 9", "features": ["a", "b"]},
}


def shown(tmp_path: Path, *records: Any, as_json: bool = False, compression: str = "none") -> str:
    memory = Memory(2 * PAGE)
    memory.bytes = bytes(PAGE) + b"frog\0--jump\0high\0" + b"HOME=/\0" + bytes(PAGE)
    with Writer(str(tmp_path), compression=compression, sync="none", replace=True) as image:
        image.write_pages([(memory, 0, 2 * PAGE)])
        for record in records:
            image.add(record)
        image.seal()
    with Reader(str(tmp_path)) as reader:
        return render(reader, as_json)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_processes_stand_below_their_parents(tmp_path: Path, compression: str) -> None:
    zombie = {"kind": "zombie", "pid": 30, "parent": 20, "name": b"tadpole", "status": 9}
    records = (process(1, 0), process(20, 1, stopped_by=19), process(40, 1), zombie)
    text = shown(tmp_path, *records, *FILES, CONTAINER, compression=compression)
    lines = text.splitlines()
    assert lines[0].startswith("container pond, frozen 20")
    assert "CPU Heart 9, 2 features; in use: sse, avx" in lines
    commands = [line for line in lines if "frog --jump high" in line or "tadpole" in line]
    assert commands[0].split() == ["1", "2", "8.0", "KiB", "frog", "--jump", "high"]
    assert commands[1].endswith("├─ frog --jump high  [stopped by signal 19]")
    assert commands[2].endswith("│  └─ tadpole  [zombie, killed by signal 9]")
    assert commands[3].endswith("└─ frog --jump high")
    assert "0,2 regular /dev/null" in text
    assert r"5 unix-socket \x00abstract, listening" in text
    assert "lost at the checkpoint: 2 TCP connections" in text


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ({"kind": "deleted", "deleted": 7}, "5 deleted /tmp/egg"),
        ({"kind": "pidfd", "pid": 9}, "5 pidfd process 9"),
        ({"kind": "pidfd", "pid": 0}, "5 pidfd of an ended process"),
        ({"kind": "proc-file", "pid": 9, "name": b"maps"}, "5 proc-file process 9, maps"),
        ({"kind": "inotify", "watches": [{}, {}]}, "5 inotify 2 watched"),
        (
            {"kind": "unix-socket", "queue": [b"abc"], "rights": [{"files": [1, 2]}]},
            "5 unix-socket 2 files in flight, 3 B waiting",
        ),
    ],
)
def test_rarer_files_tell_what_they_are(file: dict[str, Any], line: str, tmp_path: Path) -> None:
    records = (file | {"id": 2, "flags": 0}, {"kind": "deleted-file", "id": 7, "path": b"/tmp/egg"})
    assert line in shown(tmp_path, process(1, 0), FILES[0], *records, CONTAINER)


def test_json_has_all(tmp_path: Path) -> None:
    document = json.loads(shown(tmp_path, process(1, 0), *FILES, CONTAINER, as_json=True))
    assert document["image"]["page_bytes"] == 2 * PAGE
    (one,) = document["processes"]
    assert one["command"] == ["frog", "--jump", "high"]
    assert one["threads"] == [{"tid": 1, "name": "frog"}, {"tid": 2, "name": "worker"}]
    assert [file["number"] for file in one["files"]] == [0, 2, 5]
    assert [record["kind"] for record in document["records"]] == [
        "process",
        "regular",
        "unix-socket",
        "container",
    ]


def test_a_ring_of_parents_ends(tmp_path: Path) -> None:
    text = shown(tmp_path, process(1, 2), process(2, 1), process(3, 3), process(4, 0), *FILES)
    assert text.count("frog --jump high") == 4


def test_no_escape_sequence_reaches_the_terminal(tmp_path: Path) -> None:
    nasty = b"\x1b[2J\n\xff\xc2\x9b"
    container = CONTAINER | {"id": nasty.decode("latin1"), "losses": ["\x1b]0;x\x07"]}
    files = [{"kind": "regular", "id": 1, "flags": 0, "path": nasty}, FILES[1]]
    one = process(1, 0, threads=[thread(1, nasty)])
    one["memory"]["arg_start"] = 0  # no arguments: the name is shown
    text = shown(tmp_path, one, *files, container)
    assert text.replace("\n", "").isprintable()
    assert r"\x1b[2J\x0a\xff" in text


@pytest.mark.parametrize(
    "broken",
    [
        {"kind": "process"},
        process(1, 0, memory=[]),
        process(1, 0, descriptors=[[0, 99, False]]),
        process(1, 0, descriptors=[[0]]),
        process(1, 0, memory={"pages": "x", "mappings": None}),
        {"kind": "zombie", "pid": "x", "status": []},
        {"no": "kind"},
        CONTAINER | {"losses": 5},
        CONTAINER | {"id": 7},
        CONTAINER | {"cpu": {"model": 7, "features": []}},
    ],
)
def test_records_of_another_shape_are_refused(tmp_path: Path, broken: Any) -> None:
    with pytest.raises(ImageError):
        shown(tmp_path, broken, *FILES)


def test_sizes_are_readable() -> None:
    texts = [size(count) for count in (0, 1023, 1024, 200 << 10, 1000 << 10, 3 << 30, 5 << 40)]
    assert texts == ["0 B", "1023 B", "1.0 KiB", "200 KiB", "1.0 MiB", "3.0 GiB", "5.0 TiB"]
    assert readable(b"caf\xc3\xa9") == "café"
