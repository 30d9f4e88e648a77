"""Containers that run before their memory is there: `restore --background`."""

import fcntl
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import test_user_ids as user_ids
from test_programs import cases

from bundles import Bundle, bind
from containers import Container, Woodfrog, eventually, is_gone, verdict
from needs import needs

pytestmark = needs("root", "command gcc")

Build = Callable[..., Path]
PAGE = 4096
SOURCE = Path(__file__).parent / "background" / "missing.c"
ACTS = set(re.findall(r'{"([\w-]+)", \w+}', SOURCE.read_text())) - {"forks-often"}
# Then memory comes only when it is touched, until the server is told otherwise: nothing is left to
# chance by who is faster.
TOUCHED_ONLY = {"WOODFROG_WITHOUT": "filling_ahead"}
HELPERS = ["woodfrog-holder", "woodfrog-pages"]


def frozen(woodfrog: Woodfrog, build: Build, act: str, *flags: str) -> tuple[Bundle, Path]:
    """Freeze a program, before it does something, into an image; return its bundle, too."""
    program = build(SOURCE)
    bundle = Bundle(woodfrog.directory / "bundle", ["/programs/" + program.name, act])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))
    bundle.add_capabilities("CAP_IPC_LOCK")
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    container.checkpoint(woodfrog.directory / "image", "--sync=none", *flags)
    container.delete()
    return bundle, woodfrog.directory / "image"


def thawed(
    woodfrog: Woodfrog,
    frozen: tuple[Bundle, Path],
    environment: dict[str, str] | None = None,
    flag: str = "--background",
) -> Container:
    return woodfrog.restore(*frozen, flag, environment=environment)


def helpers(woodfrog: Woodfrog) -> dict[str, int]:
    """Return the processes that fill in memory of this one's containers, by name."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and not is_gone(int(entry.name)):
            try:
                name = (entry / "comm").read_text().strip()
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if name in HELPERS and os.fsencode(woodfrog.root) in command:
                found[name] = int(entry.name)
    return found


@pytest.mark.parametrize("act", sorted(ACTS))
@pytest.mark.parametrize("environment", [TOUCHED_ONLY, {}], ids=["touched", "filled"])
def test_memory_that_is_missing_behaves_like_any(
    act: str, environment: dict[str, str], woodfrog: Woodfrog, build: Build
) -> None:
    image = frozen(woodfrog, build, act)
    container = thawed(woodfrog, image, environment)
    assert verdict(container) == "ok\n"


def told_of(container: Container) -> dict[str, object]:
    """Return what `state` says of the filling."""
    found: dict[str, object] = container.state().get("filling", {})
    return found


@pytest.mark.parametrize("flags", [(), ("--compression=zstd",)], ids=["plain", "compressed"])
def test_an_image_is_of_no_use_any_more_when_all_is_in(
    flags: tuple[str, ...], woodfrog: Woodfrog, build: Build
) -> None:
    image = frozen(woodfrog, build, "forks", *flags)
    container = thawed(woodfrog, image)
    woodfrog("wait", "--restore", container.name)
    (image[1] / "checkpoint.img").unlink()
    assert told_of(container) == {}
    assert helpers(woodfrog) == {}
    assert verdict(container) == "ok\n"


def test_an_image_may_lose_its_name_at_once(woodfrog: Woodfrog, build: Build) -> None:
    image = frozen(woodfrog, build, "protects")
    container = thawed(woodfrog, image, TOUCHED_ONLY)
    (image[1] / "checkpoint.img").unlink()
    progress = told_of(container)
    assert isinstance(progress["of"], int)
    assert progress["of"] >= 4 << 20
    assert sorted(helpers(woodfrog)) == HELPERS
    assert verdict(container) == "ok\n"
    eventually(lambda: not helpers(woodfrog), "those who fill end with the container")


def test_a_container_without_its_page_server_ends(woodfrog: Woodfrog, build: Build) -> None:
    container = thawed(woodfrog, frozen(woodfrog, build, "moves"), TOUCHED_ONLY)
    server = helpers(woodfrog)["woodfrog-pages"]
    os.kill(server, signal.SIGKILL)
    assert container.wait() == -signal.SIGKILL
    eventually(lambda: not helpers(woodfrog), "the holder ends, too")
    assert told_of(container)["failure"] == (
        "the process that filled in its memory was killed by signal 9"
    )
    said = woodfrog("wait", "--restore", container.name, status=1).stderr
    assert "the process that filled in its memory was killed" in said
    assert not (container.bundle.work / "out").exists()


def test_a_page_server_without_its_holder_goes_on(woodfrog: Woodfrog, build: Build) -> None:
    container = thawed(woodfrog, frozen(woodfrog, build, "forks"), TOUCHED_ONLY)
    os.kill(helpers(woodfrog)["woodfrog-holder"], signal.SIGKILL)
    assert verdict(container) == "ok\n"
    eventually(lambda: not helpers(woodfrog), "the server ends with the container")


def test_what_is_damaged_is_never_handed_out(woodfrog: Woodfrog, build: Build) -> None:
    bundle, image = frozen(woodfrog, build, "protects")
    file = image / "checkpoint.img"
    # Far from the pages that a process needs at once, which stand with the stack at the end.
    with file.open("r+b") as stored:
        stored.seek(2 << 20)
        byte = stored.read(1)
        stored.seek(2 << 20)
        stored.write(bytes([byte[0] ^ 1]))
    log, pid_file = woodfrog.directory / "log", woodfrog.directory / "pid"
    flags = ("--background", f"--image-path={image}", f"--bundle={bundle.directory}", "--detach")
    woodfrog(
        f"--log={log}",
        "restore",
        *flags,
        f"--pid-file={pid_file}",
        "damaged",
        environment=TOUCHED_ONLY,
    )
    container = Container(woodfrog, "damaged", bundle, int(pid_file.read_text()))
    woodfrog.containers.append(container)
    woodfrog.names.append("damaged")
    (bundle.work / "check").touch()
    assert container.wait() == -signal.SIGKILL
    eventually(lambda: not helpers(woodfrog), "those who fill end")
    assert "checksum of page chunk" in str(told_of(container)["failure"])
    assert "container damaged was ended: its memory cannot be filled in" in log.read_text()
    assert not (bundle.work / "out").exists()


def test_a_checkpoint_waits_until_all_is_in(woodfrog: Woodfrog, build: Build) -> None:
    image = frozen(woodfrog, build, "forks")
    container = thawed(woodfrog, image, TOUCHED_ONLY)
    assert told_of(container) != {}
    container.checkpoint(woodfrog.directory / "second", "--leave-running", "--sync=none")
    assert told_of(container) == {}
    container.delete()
    again = thawed(woodfrog, (image[0], woodfrog.directory / "second"))
    assert verdict(again) == "ok\n"


def test_a_paused_container_is_filled_and_frozen(woodfrog: Woodfrog, build: Build) -> None:
    image = frozen(woodfrog, build, "writes")
    container = thawed(woodfrog, image, TOUCHED_ONLY)
    woodfrog("pause", container.name)
    container.checkpoint(woodfrog.directory / "second", "--sync=none")
    container.delete()
    assert verdict(woodfrog.restore(image[0], woodfrog.directory / "second")) == "ok\n"


def test_children_that_have_gone_are_forgotten(woodfrog: Woodfrog, build: Build) -> None:
    container = thawed(woodfrog, frozen(woodfrog, build, "forks-often"), TOUCHED_ONLY)
    (container.bundle.work / "check").touch()
    container.wait_for("forked")
    assert len(list(Path(f"/proc/{helpers(woodfrog)['woodfrog-pages']}/fd").iterdir())) < 150
    (container.bundle.work / "on").touch()
    assert verdict(container) == "ok\n"


@pytest.mark.parametrize("flag", ["--background", "--lazy-pages"])
def test_delete_ends_those_who_fill(flag: str, woodfrog: Woodfrog, build: Build) -> None:
    container = thawed(woodfrog, frozen(woodfrog, build, "forks"), TOUCHED_ONLY, flag)
    assert helpers(woodfrog)
    woodfrog("delete", "--force", container.name)
    assert helpers(woodfrog) == {}


def test_those_who_fill_hold_nothing_of_the_command(woodfrog: Woodfrog, build: Build) -> None:
    thawed(woodfrog, frozen(woodfrog, build, "forks"), TOUCHED_ONLY)
    allowed = ("anon_inode:", "/dev/null", "pipe:", str(woodfrog.directory / "image"))
    for name, pid in helpers(woodfrog).items():
        assert os.getsid(pid) == helpers(woodfrog)["woodfrog-holder"]
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        for link in Path(f"/proc/{pid}/fd").iterdir():
            assert os.readlink(link).startswith(allowed), (name, link, os.readlink(link))


def test_a_restore_that_fails_leaves_nobody_who_fills(woodfrog: Woodfrog, build: Build) -> None:
    bundle, image = frozen(woodfrog, build, "forks")
    bundle.save()
    restore = ("restore", "--background", f"--image-path={image}", "--detach")
    restore += (f"--bundle={bundle.directory}", "failing")
    with (bundle.work / "locked").open() as file:
        # The container's lock is taken again when its memory is being filled in already.
        fcntl.flock(file, fcntl.LOCK_EX)
        said = woodfrog(*restore, status=1, environment=TOUCHED_ONLY).stderr
    assert "taking the file locks" in said
    assert helpers(woodfrog) == {}
    assert not (woodfrog.root / "failing").exists()


def test_an_attached_restore_leaves_nobody_who_fills(woodfrog: Woodfrog, build: Build) -> None:
    bundle, image = frozen(woodfrog, build, "forks")
    bundle.save()
    (bundle.work / "check").touch()
    woodfrog(
        "restore",
        "--background",
        f"--image-path={image}",
        f"--bundle={bundle.directory}",
        "attached",
    )
    assert (bundle.work / "out").read_text() == "ok\n"
    assert helpers(woodfrog) == {}


def test_what_is_filled_in_counts_as_the_containers(woodfrog: Woodfrog, build: Build) -> None:
    container = thawed(woodfrog, frozen(woodfrog, build, "forks"))
    woodfrog("wait", "--restore", container.name)
    told = json.loads(woodfrog("events", "--stats", container.name).stdout)
    assert told["data"]["memory"]["usage"]["usage"] >= 4 << 20


def test_a_container_with_a_user_namespace_is_filled_in(woodfrog: Woodfrog, build: Build) -> None:
    case = next(case for case in cases() if case.name == "anonymous")
    container = user_ids.start(case, woodfrog, build)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--sync=none")
    container.delete()
    assert verdict(thawed(woodfrog, (container.bundle, image), TOUCHED_ONLY)) == "ok\n"


def test_what_was_touched_first_comes_first_the_next_time(woodfrog: Woodfrog, build: Build) -> None:
    bundle, image = frozen(woodfrog, build, "protects")
    first = thawed(woodfrog, (bundle, image), TOUCHED_ONLY)
    assert verdict(first) == "ok\n"
    eventually(lambda: not helpers(woodfrog), "all is in")
    assert sorted(path.name for path in image.iterdir()) == ["checkpoint.img", "working-set"]
    first.delete()
    for name in ("ready", "check", "out"):
        (bundle.work / name).unlink(missing_ok=True)

    second = thawed(woodfrog, (bundle, image), TOUCHED_ONLY)

    # It waits, and touches next to nothing; yet what it touched then is there.
    touched = msgspec.msgpack.decode((image / "working-set").read_bytes())["touched"]
    wanted = sum(map(len, touched.values())) * PAGE
    assert wanted > 0

    def bytes_in() -> int:
        return int(str(told_of(second).get("bytes", 1 << 40)))  # nothing is told when all is in

    eventually(lambda: bytes_in() >= wanted, "the working set is in")
    assert verdict(second) == "ok\n"


@pytest.mark.parametrize(
    "content", [b"", b"\xc1", b"\x82\xa5image\xa0\xa7touched\x81\x01\x91\xcb" + bytes(8)]
)
def test_a_working_set_that_makes_no_sense_is_ignored(
    content: bytes, woodfrog: Woodfrog, build: Build
) -> None:
    bundle, image = frozen(woodfrog, build, "protects")
    (image / "working-set").write_bytes(content)
    assert verdict(thawed(woodfrog, (bundle, image))) == "ok\n"
