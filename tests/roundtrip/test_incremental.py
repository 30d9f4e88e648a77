"""Images that hold only what has changed since another one: --parent, --pre-dump and merge."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from changing import MANY, OLDER, SHARED, SOURCE, Changing

from containers import Woodfrog, eventually
from needs import needs
from woodfrog.image.chain import Chain
from woodfrog.image.container_file import Reader

pytestmark = needs("root", "command gcc")


@pytest.fixture
def changing(woodfrog: Woodfrog, build: Callable[..., Path]) -> Changing:
    return Changing(woodfrog, build(SOURCE))


def parent(number: int) -> str:
    return f"--parent={number}"


@pytest.fixture(params=["noted", "compared", "older kernel", "compressed"])
def chain(request: pytest.FixtureRequest, changing: Changing) -> Changing:
    """Three images, each of which builds on the one before, of steps 0, 2 and 3."""
    how = {"environment": OLDER} if request.param == "older kernel" else {}
    flags = ("--compression=zstd",) if request.param == "compressed" else ()
    track = ("--track-changes",) if request.param == "noted" else ()
    first = changing.save(0, *flags, *track, **how)
    assert first["page_bytes"] > MANY
    changing.go_to(2)
    second = changing.save(1, *flags, f"--parent={changing.image(0)}", **how)
    changing.go_to(3)
    third = changing.save(2, *flags, f"--parent={changing.image(1)}", **how)
    for figures in (second, third):
        assert figures["page_bytes"] < MANY / 3
        assert figures["unchanged_bytes"] > MANY / 2
    # Of shared memory nobody knows what was written to.
    assert (second["compared_bytes"] < SHARED) == (request.param == "noted")
    assert (third["compared_bytes"] < SHARED) == (request.param != "older kernel")
    changing.end()
    return changing


def test_a_chain_of_three_is_restored_at_each_of_its_images(chain: Changing) -> None:
    for number, step in ((2, 3), (0, 0), (1, 2)):
        assert chain.verdict_of(number, step) == "ok\n"


def test_of_system_v_shared_memory_only_what_has_changed_is_stored(
    woodfrog: Woodfrog, build: Callable[..., Path]
) -> None:
    changing = Changing(woodfrog, build(SOURCE), "System V")
    changing.save(0)
    changing.go_to(2)
    second = changing.save(1, f"--parent={changing.image(0)}")
    changing.end()
    assert second["page_bytes"] < MANY / 3
    assert second["unchanged_bytes"] > MANY / 2 + SHARED
    assert changing.verdict_of(1, 2) == "ok\n"


@pytest.fixture
def pair(changing: Changing) -> Changing:
    """Two images, of steps 0 and 1."""
    changing.save(0)
    changing.go_to(1)
    changing.save(1, f"--parent={changing.image(0)}")
    changing.end()
    return changing


@pytest.mark.parametrize("flags", [(), ("--compression=zstd",)], ids=["plain", "compressed"])
def test_memory_comes_in_the_background_from_all_images_of_a_chain(
    flags: tuple[str, ...], changing: Changing
) -> None:
    changing.save(0, "--compression=zstd")
    changing.go_to(1)
    changing.save(1, f"--parent={changing.image(0)}", *flags)
    changing.end()
    assert changing.verdict_of(1, 1, "--background") == "ok\n"
    touched = {"WOODFROG_WITHOUT": "filling_ahead"}
    assert changing.verdict_of(1, 1, "--background", environment=touched) == "ok\n"


def contents(image: Path) -> list[tuple[int, dict[int, bytes]]]:
    """Return the pages of each process of an image, by their addresses."""
    found = []
    with Chain(str(image)) as chain:
        for record in chain.raw_records():
            if record["kind"] == "process":
                pages: dict[int, bytes] = {}
                for start, length, store in record["memory"]["pages"]:
                    for at in range(0, length, 4096):
                        pages[start + at] = chain.read_memory(store + at, 4096)
                found.append((record["pid"], pages))
    return found


def test_a_merged_image_is_what_its_chain_was(
    pair: Changing, woodfrog: Woodfrog, tmp_path: Path
) -> None:
    before = contents(pair.image(1))
    said = woodfrog("merge", str(pair.image(1)), f"--output={tmp_path / 'whole'}").stdout
    assert "stands alone" in said
    woodfrog("merge", str(pair.image(1)))
    shutil.rmtree(pair.image(0))

    for image in (pair.image(1), tmp_path / "whole"):
        assert contents(image) == before
        with Reader(str(image)) as reader:
            assert reader.header.parent == ""
        assert not (image / "parent").exists()
    assert pair.verdict_of(1, 1) == "ok\n"
    assert "already" in woodfrog("merge", str(pair.image(1))).stdout


def test_a_parent_that_has_gone_elsewhere_is_named(pair: Changing, woodfrog: Woodfrog) -> None:
    away = woodfrog.directory / "elsewhere"
    pair.image(0).rename(away)

    for command in (
        ["verify", str(pair.image(1))],
        ["merge", str(pair.image(1))],
        ["restore", f"--image-path={pair.image(1)}", "-b", str(pair.bundle.directory), "wf-none"],
    ):
        said = woodfrog(*command, status=1).stderr
        assert "the parent of the image in" in said
        assert "is missing" in said
        assert "--parent" in said
    assert "builds on a parent image" in woodfrog("inspect", str(pair.image(1))).stdout
    woodfrog("verify", f"--parent={away}", str(pair.image(1)))
    assert pair.verdict_of(1, 1, f"--parent={away}") == "ok\n"


def test_a_parent_that_is_another_image_is_refused(pair: Changing, woodfrog: Woodfrog) -> None:
    shutil.rmtree(pair.image(0))
    pair.container = woodfrog.run(pair.bundle)
    pair.container.wait_for("at1")
    pair.save(0)
    pair.end()

    said = woodfrog("verify", str(pair.image(1)), status=1).stderr

    assert "holds another image" in said


def test_a_damaged_parent_is_found(pair: Changing, woodfrog: Woodfrog) -> None:
    image = pair.image(0) / "checkpoint.img"
    with image.open("r+b") as file:
        file.seek(4 << 20)
        file.write(b"another page")

    said = woodfrog("verify", str(pair.image(1)), status=1).stderr
    assert "is damaged" in said
    assert (
        "is damaged"
        in woodfrog(
            "restore",
            f"--image-path={pair.image(1)}",
            "--bundle",
            str(pair.bundle.directory),
            "wf-damaged",
            status=1,
        ).stderr
    )
    changed = pair.woodfrog.root / "wf-damaged"
    assert not changed.exists()


def test_no_image_leads_to_a_file_that_nobody_named(pair: Changing, woodfrog: Woodfrog) -> None:
    """What `parent` leads to is read only as an image, and only if it is the one."""
    link = pair.image(1) / "parent"
    link.unlink()
    for target in ("/etc", "/dev", ".", "parent"):
        link.symlink_to(target)
        assert "is missing" in woodfrog("verify", str(pair.image(1)), status=1).stderr
        link.unlink()


def test_a_pre_dump_leaves_little_for_the_checkpoint(
    changing: Changing, woodfrog: Woodfrog
) -> None:
    first = changing.save(0, "--pre-dump")
    assert first["page_bytes"] > MANY
    changing.go_to(1)
    second = changing.save(1, "--pre-dump", "--parent-path=../0")
    assert second["page_bytes"] < MANY / 3
    changing.go_to(2)
    flags = ("--stats", "--sync=none", "--parent-path=../1")
    told = changing.container.checkpoint(changing.image(2), *flags)
    third = json.loads(told.stdout)
    assert third["page_bytes"] < MANY / 3
    assert third["compared_bytes"] < SHARED
    assert os.readlink(changing.image(2) / "parent") == "../1"
    changing.end()
    eventually(lambda: not changing.keepers(), "the keeper ends with the container")
    said = woodfrog(
        "restore",
        f"--image-path={changing.image(1)}",
        "-b",
        str(changing.bundle.directory),
        "wf-pre",
        status=1,
    )
    assert "is a pre-dump" in said.stderr
    assert changing.verdict_of(2, 2) == "ok\n"


def test_a_container_that_is_noted_shows_who_does_it(
    changing: Changing, woodfrog: Woodfrog
) -> None:
    changing.save(0, "--track-changes")
    assert len(changing.keepers()) == 1
    rows = json.loads(woodfrog("list", "--helpers", "--format=json").stdout)
    assert [(row["container"], row["pid"]) for row in rows] == [
        (changing.container.name, changing.keepers()[0])
    ]
    changing.go_to(1)
    changing.save(1, f"--parent={changing.image(0)}")
    assert len(changing.keepers()) == 1
    woodfrog("check", changing.container.name)
    changing.container.delete()
    assert changing.keepers() == []
    assert changing.verdict_of(1, 1) == "ok\n"


def test_without_its_keeper_pages_are_compared(changing: Changing) -> None:
    changing.save(0, "--track-changes")
    os.kill(changing.keepers()[0], signal.SIGKILL)
    eventually(lambda: not changing.keepers(), "it ends")
    changing.go_to(1)
    found = changing.save(1, f"--parent={changing.image(0)}")
    assert found["compared_bytes"] > MANY / 2
    assert found["page_bytes"] < MANY / 3
    changing.end()
    assert changing.verdict_of(1, 1) == "ok\n"


def test_what_is_noted_for_one_image_is_not_believed_of_another(changing: Changing) -> None:
    changing.save(0)
    changing.go_to(1)
    changing.save(1, "--track-changes")
    changing.go_to(2)
    found = changing.save(2, f"--parent={changing.image(0)}")
    assert found["compared_bytes"] > MANY / 2
    changing.end()
    assert changing.verdict_of(2, 2) == "ok\n"


@pytest.mark.parametrize("flags", [(), ("--track-changes",)], ids=["compared", "noted"])
def test_a_restored_container_builds_on_the_image_that_it_came_from(
    flags: tuple[str, ...], changing: Changing
) -> None:
    changing.save(0)
    changing.end()
    (changing.bundle.work / "at0").unlink()
    changing.container = changing.woodfrog.restore(changing.bundle, changing.image(0), *flags)
    changing.container.wait_for("at0")
    changing.go_to(1)
    found = changing.save(1, f"--parent={changing.image(0)}")
    assert found["page_bytes"] < MANY / 3
    assert (found["compared_bytes"] < SHARED) == bool(flags)
    changing.end()
    assert changing.verdict_of(1, 1) == "ok\n"


def test_a_killed_checkpoint_leaves_nothing_but_a_container_that_runs_on(
    changing: Changing, woodfrog: Woodfrog
) -> None:
    changing.save(0, "--track-changes")
    for delay in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3):
        flags = (f"--parent={changing.image(0)}", f"--image-path={changing.image(1)}")
        command = subprocess.Popen(
            woodfrog.command("checkpoint", "--leave-running", *flags, changing.container.name)
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.wait(delay)
        command.kill()
        command.wait()
        if (changing.image(1) / "checkpoint.img").exists():
            shutil.rmtree(changing.image(1))
    eventually(lambda: len(changing.keepers()) <= 1, "at most one keeper")
    woodfrog("state", changing.container.name)
    changing.go_to(3)
    eventually(lambda: not changing.image(1).exists(), "no half image")
    changing.save(1, f"--parent={changing.image(0)}")
    changing.end()
    assert changing.verdict_of(1, 3) == "ok\n"
