"""What is around the programs: exec, host names, stdio, states, exit statuses."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from shells import WAIT, frozen, shell

from bundles import Bundle, bind
from containers import Woodfrog, eventually
from needs import needs

pytestmark = needs("root")
PROGRAMS = Path(__file__).parent / "programs"


def test_a_process_that_exec_brought_in_goes_on_too(woodfrog: Woodfrog) -> None:
    # The first process stays until the other has come to its end, which its own would be, too.
    wait = "while [ ! -s /work/pid-after ]; do sleep 0.02; done"
    container = woodfrog.run(shell(woodfrog, f": > /work/ready; {wait}"))
    container.wait_for("ready")
    script = f"echo $$ > /work/pid; {WAIT}; echo $$ > /work/pid-after"
    output = woodfrog.directory / "exec.output"
    woodfrog("exec", "--detach", container.name, "/bin/sh", "-c", script, output=output)
    container.wait_for("pid")
    image = frozen(container)

    restored = woodfrog.restore(container.bundle, image)
    (restored.bundle.work / "check").touch()
    restored.wait_for("pid-after")

    assert restored.wait() == 0
    assert (restored.bundle.work / "pid").read_text() == (
        restored.bundle.work / "pid-after"
    ).read_text()


@needs("command gcc")
@pytest.mark.parametrize("flags", ["0", "2"])
def test_an_io_uring_of_a_process_that_exec_brought_in_goes_on_too(
    woodfrog: Woodfrog, build: Callable[..., Path], flags: str
) -> None:
    # It can't be sent to a process as other files can.
    source = "io_uring.c" if flags == "0" else "io_uring_polled.c"
    program = build(PROGRAMS / source)
    bundle = shell(woodfrog, "while [ ! -s /work/out ]; do sleep 0.02; done")
    bundle.add_mount(bind(program.parent, "/opt"))
    container = woodfrog.run(bundle)
    output = woodfrog.directory / "exec.output"
    woodfrog("exec", "--detach", container.name, f"/opt/{program.name}", flags, output=output)
    container.wait_for("ready")
    image = frozen(container)

    restored = woodfrog.restore(container.bundle, image)
    (restored.bundle.work / "check").touch()

    assert restored.wait() == 0
    assert (restored.bundle.work / "out").read_text() == "ok\n"


@pytest.mark.parametrize("changed", [True, False])
def test_the_new_host_name_applies_unless_the_program_changed_the_old(
    changed: bool, woodfrog: Woodfrog
) -> None:
    command = "hostname changed; " if changed else ""
    bundle = shell(woodfrog, f"{command}: > /work/ready; {WAIT}; hostname > /work/out")
    bundle.add_capabilities("CAP_SYS_ADMIN")
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = frozen(container)
    bundle.config["hostname"] = "spring"

    restored = woodfrog.restore(bundle, image)
    (bundle.work / "check").touch()

    assert restored.wait() == 0
    assert (bundle.work / "out").read_text() == ("changed\n" if changed else "spring\n")


def test_stdio_is_that_of_the_new_container(woodfrog: Woodfrog) -> None:
    bundle = shell(woodfrog, f"echo before; : > /work/ready; {WAIT}; echo after; echo error >&2")
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = frozen(container)

    restored = woodfrog.restore(bundle, image)
    (bundle.work / "check").touch()

    assert restored.wait() == 0
    assert container.told() == "before\n"
    assert restored.told().splitlines()[-2:] == ["after", "error"]


def test_stdio_that_was_opened_again_or_moved_is_the_new_one_too(woodfrog: Woodfrog) -> None:
    opened = "exec 3>> /dev/stdout 4>&2 2> /dev/null"
    script = f"{opened}; : > /work/ready; {WAIT}; echo a >&3; echo b; echo c >&4; echo d >&3"
    bundle = shell(woodfrog, script)
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = frozen(container)

    restored = woodfrog.restore(bundle, image)
    (bundle.work / "check").touch()

    assert restored.wait() == 0
    assert restored.told() == "a\nb\nc\nd\n"


def test_what_the_host_has_deleted_or_renamed_under_a_mount_is_the_new_containers(
    woodfrog: Woodfrog, tmp_path: Path
) -> None:
    file, directory = tmp_path / "file", tmp_path / "directory"
    file.write_text("old")
    directory.mkdir()
    (directory / "inner").write_text("inner")
    script = f": > /work/ready; {WAIT}; cat /given/file /given/directory/inner > /work/out"
    bundle = shell(woodfrog, script)
    bundle.add_mount(bind(file, "/given/file"))
    bundle.add_mount(bind(directory, "/given/directory"))
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    # As an editor does it, and who rotates files.
    (tmp_path / "new").write_text("new")
    (tmp_path / "new").rename(file)
    directory.rename(tmp_path / "away")
    image = frozen(container)
    (tmp_path / "away").rename(directory)

    restored = woodfrog.restore(container.bundle, image)
    (restored.bundle.work / "check").touch()

    assert restored.wait() == 0
    assert (restored.bundle.work / "out").read_text() == "newinner"


def test_state_tells_that_a_container_was_restored_and_from_where(woodfrog: Woodfrog) -> None:
    container = woodfrog.run(shell(woodfrog, f": > /work/ready; {WAIT}"))
    container.wait_for("ready")
    assert "restore" not in json.dumps(container.state()).lower()
    image = frozen(container)

    restored = woodfrog.restore(container.bundle, image)

    assert restored.state()["status"] == "running"
    assert str(image) in json.dumps(restored.state())


def test_a_restore_into_a_running_container_is_refused(woodfrog: Woodfrog) -> None:
    container = woodfrog.run(shell(woodfrog, f": > /work/ready; {WAIT}"))
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running")

    refused = woodfrog("restore", f"--image-path={image}", container.name, status=None)

    assert refused.status not in (0, None)
    assert container.name in refused.stderr
    (container.bundle.work / "check").touch()
    assert container.wait() == 0


def test_an_attached_restore_returns_the_exit_status(woodfrog: Woodfrog) -> None:
    container = woodfrog.run(shell(woodfrog, f": > /work/ready; {WAIT}; exit 42"))
    container.wait_for("ready")
    image = frozen(container)
    (container.bundle.work / "check").touch()
    directory = str(container.bundle.directory)

    woodfrog("restore", f"--image-path={image}", "-b", directory, container.name, status=42)
    woodfrog("delete", "--force", container.name)


def test_a_checkpoint_of_nothing_and_without_a_place_is_refused(woodfrog: Woodfrog) -> None:
    container = woodfrog.run(shell(woodfrog, f": > /work/ready; {WAIT}"))
    container.wait_for("ready")

    nowhere = woodfrog("checkpoint", container.name, status=None)
    nothing = woodfrog("checkpoint", "--image-path=/nowhere/at/all", "nobody", status=None)

    assert nowhere.status != 0
    assert "--image-path" in nowhere.stderr
    assert nothing.status != 0
    assert "nobody" in nothing.stderr
    assert not Path("/nowhere").exists()
    (container.bundle.work / "check").touch()
    assert container.wait() == 0


def test_untouched_and_zero_and_shared_pages_are_stored_once_or_not_at_all(
    woodfrog: Woodfrog, build: Callable[..., Path]
) -> None:
    program = build(Path(__file__).parent / "programs" / "forked_memory.c")
    bundle = Bundle(woodfrog.directory / "bundle", ["/work/program"])
    (bundle.work / "program").write_bytes(program.read_bytes())
    (bundle.work / "program").chmod(0o755)
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    image = frozen(container)

    # Five processes share 16 MiB.
    assert (image / "checkpoint.img").stat().st_size < 20 << 20
    assert (image / "checkpoint.img").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "flags",
    [("--compression=zstd",), ("--compression=flate-best-speed",), ("--sync=none",)],
)
def test_an_image_made_in_another_way_is_as_good(
    flags: tuple[str, ...], woodfrog: Woodfrog
) -> None:
    script = f'kept=$(seq 10000); : > /work/ready; {WAIT}; echo "$kept" > /work/out'
    container = woodfrog.run(shell(woodfrog, script))
    container.wait_for("ready")
    image = frozen(container, *flags)
    woodfrog("verify", str(image))
    kind = "".join(flags).partition("--compression=")[2]
    assert (f"compressed by {kind}" in woodfrog("inspect", str(image)).stdout) is bool(kind)

    restored = woodfrog.restore(container.bundle, image)
    (restored.bundle.work / "check").touch()

    assert restored.wait() == 0
    numbers = (restored.bundle.work / "out").read_text().split()
    assert numbers == [str(number) for number in range(1, 10001)]


@pytest.mark.parametrize("clock", ["container", "host"])
def test_uptime_goes_on_from_the_freeze_or_is_that_of_the_host(
    clock: str, woodfrog: Woodfrog
) -> None:
    script = "cat /proc/uptime > /work/before; : > /work/ready; "
    script += f"{WAIT}; cat /proc/uptime > /work/after"
    began = time.monotonic()
    container = woodfrog.run(shell(woodfrog, script))
    container.wait_for("ready")
    image = frozen(container)
    ran = time.monotonic() - began
    apart = ran + 1
    time.sleep(apart)
    began = time.monotonic()

    restored = woodfrog.restore(container.bundle, image, f"--clock={clock}")
    (restored.bundle.work / "check").touch()

    assert restored.wait() == 0
    ran += time.monotonic() - began
    before, after = (
        float((container.bundle.work / name).read_text().split()[0]) for name in ("before", "after")
    )
    passed = after - before
    rounded = 0.02
    assert passed >= apart - rounded if clock == "host" else 0 <= passed <= ran + rounded


def test_do_is_frozen_with_what_it_wrote_and_thawed_without_a_bundle(
    woodfrog: Woodfrog, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    scratch = Path(f"/etc/frog-{os.getpid()}")
    script = f"echo scratch > {scratch}; : > /v/ready; while [ ! -e /v/check ]; do sleep 0.02; done"
    script += f"; cat {scratch} > /v/out; exit 3"
    first, second = (f"wf-do-{os.getpid()}-{number}" for number in (1, 2))
    woodfrog.names += [first, second]
    command = woodfrog.command("do", "--quiet", f"--id={first}", f"--volume={volume}:/v")
    with subprocess.Popen([*command, "--", "/bin/sh", "-c", script]) as do:
        try:
            eventually((volume / "ready").exists, "it is ready")
            assert not scratch.exists()
            woodfrog("checkpoint", f"--image-path={tmp_path / 'image'}", first)
            assert do.wait(60) == 128 + 9
        finally:
            do.kill()
            scratch.unlink(missing_ok=True)
    (volume / "check").touch()

    flags = (f"--image-path={tmp_path / 'image'}", f"--volume={volume}:/v")
    woodfrog("restore", "--do", *flags, second, status=3)

    assert (volume / "out").read_text() == "scratch\n"
    assert not scratch.exists()


def test_a_process_of_exec_has_its_own_files_however_many_there_are(woodfrog: Woodfrog) -> None:
    script = """
        for n in {3..40}; do echo $n > /work/file$n; eval "exec $n< /work/file$n"; done
        : > /work/ready
        while [ ! -e /work/end ]; do sleep 0.02; done
    """
    bundle = Bundle(woodfrog.directory / "bundle", ["/bin/bash", "-c", script])
    bundle.add_host_programs()
    container = woodfrog.run(bundle)
    container.wait_for("ready")
    (bundle.work / "ready").unlink()
    script = """
        for n in {3..9}; do echo own $n > /work/own$n; eval "exec $n< /work/own$n"; done
        : > /work/ready
        while [ ! -e /work/check ]; do sleep 0.02; done
        for n in {3..9}; do cat <&$n; done > /work/out
        : > /work/done
    """
    woodfrog("exec", "--detach", container.name, "/bin/bash", "-c", script)
    container.wait_for("ready")
    image = woodfrog.directory / "image"
    container.checkpoint(image)
    container.wait()
    container.delete()
    restored = woodfrog.restore(bundle, image)
    (bundle.work / "check").touch()
    restored.wait_for("done")
    assert (bundle.work / "out").read_text() == "".join(f"own {n}\n" for n in range(3, 10))
    (bundle.work / "end").touch()
    restored.wait()
