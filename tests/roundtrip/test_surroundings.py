"""What is around the programs: exec, pauses, host names, stdio, terminals, exit statuses."""

import array
import compileall
import contextlib
import json
import operator
import os
import resource
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bundles import Bundle, bind
from containers import REPOSITORY, Container, Woodfrog, eventually
from needs import needs

pytestmark = needs("root")


def shell(woodfrog: Woodfrog, script: str) -> Bundle:
    """Return a bundle in which the host's shell runs a script."""
    bundle = Bundle(woodfrog.directory / "bundle", ["/bin/sh", "-c", script])
    bundle.add_host_programs()
    return bundle


def frozen(container: Container, *flags: str) -> Path:
    """Freeze a container, delete it, and return its image."""
    image = container.woodfrog.directory / "image"
    container.checkpoint(image, *flags)
    container.wait()
    container.delete()
    return image


PROGRAMS = Path(__file__).parent / "programs"
WAIT = "while [ ! -e /work/check ]; do sleep 0.02; done"


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


def test_a_paused_container_can_be_frozen_and_goes_on_when_thawed(woodfrog: Woodfrog) -> None:
    container = woodfrog.run(shell(woodfrog, f": > /work/ready; {WAIT}"))
    container.wait_for("ready")
    woodfrog("pause", container.name)
    image = frozen(container)

    restored = woodfrog.restore(container.bundle, image)
    (restored.bundle.work / "check").touch()

    assert restored.wait() == 0


def test_a_paused_container_that_is_left_running_stays_paused(woodfrog: Woodfrog) -> None:
    container = woodfrog.run(shell(woodfrog, f": > /work/ready; {WAIT}; : > /work/out"))
    container.wait_for("ready")
    woodfrog("pause", container.name)
    container.checkpoint(woodfrog.directory / "image", "--leave-running")

    assert container.state()["status"] == "paused"
    (container.bundle.work / "check").touch()
    time.sleep(0.1)
    assert not (container.bundle.work / "out").exists()
    woodfrog("resume", container.name)
    assert container.wait() == 0


@needs("command gcc")
def test_not_one_instruction_of_a_paused_container_runs(
    woodfrog: Woodfrog, build: Callable[..., Path]
) -> None:
    program = build(Path(__file__).parent / "busy.c")
    bundle = Bundle(woodfrog.directory / "bundle", [f"/programs/{program.name}"])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))
    file = bundle.work / "counts"
    file.write_bytes(bytes(16))

    def counts() -> tuple[int, ...]:
        return struct.unpack("2Q", file.read_bytes())

    container = woodfrog.run(bundle)
    eventually(lambda: all(counts()), "both threads count")
    woodfrog("pause", container.name)
    before = counts()
    container.checkpoint(woodfrog.directory / "first", "--leave-running")
    assert container.state()["status"] == "paused"
    assert counts() == before
    # Python itself would cut the modules that it compiles.
    compileall.compile_dir(REPOSITORY / "src", quiet=1)
    limits = {resource.RLIMIT_FSIZE: 8192}
    failed = container.checkpoint(woodfrog.directory / "none", limits=limits, status=1)
    assert "the container is paused as before" in failed.stderr
    assert container.state()["status"] == "paused"
    assert counts() == before
    image = frozen(container)
    assert counts() == before

    restored = woodfrog.restore(bundle, image)
    eventually(lambda: all(map(operator.gt, counts(), before)), "both threads count on")
    restored.kill()


@needs("command gcc")
def test_a_paused_wait_has_the_time_that_was_left(
    woodfrog: Woodfrog, build: Callable[..., Path]
) -> None:
    program = build(Path(__file__).parent / "patient.c")
    bundle = Bundle(woodfrog.directory / "bundle", [f"/programs/{program.name}"])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))

    def left(container: Container) -> float:
        """Return for how many seconds it waits in poll(2), or 0 if it doesn't."""
        call = Path(f"/proc/{container.init}/syscall").read_text().split()
        return int(call[3], 16) / 1000 if call[0] == "7" else 0

    container = woodfrog.run(bundle)
    total = eventually(lambda: left(container), "it waits")
    began = time.monotonic()
    time.sleep(1)  # longer than all that follows, or nothing is shown
    woodfrog("pause", container.name)
    passed = time.monotonic() - began
    container.checkpoint(woodfrog.directory / "first", "--leave-running")
    restored = woodfrog.restore(bundle, frozen(container))
    assert total - 60 < eventually(lambda: left(restored), "it waits on") < total - passed
    restored.kill()


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


@needs("command script")
def test_a_shell_in_a_terminal_of_its_own_goes_on(woodfrog: Woodfrog) -> None:
    inner = f"stty rows 7; : > /work/ready; {WAIT}; read typed; echo got:$typed; stty size; tty"
    (woodfrog.directory / "bundle" / "work").mkdir(parents=True)
    os.mkfifo(woodfrog.directory / "bundle" / "work" / "input")
    script = f"exec 3<>/work/input; script -qefc '{inner}' /work/typescript <&3"
    container = woodfrog.run(shell(woodfrog, script))
    container.wait_for("ready")
    image = frozen(container)

    restored = woodfrog.restore(container.bundle, image)
    (restored.bundle.work / "check").touch()
    (restored.bundle.work / "input").write_text("by hand\n")

    assert restored.wait() == 0, restored.told()
    said = (restored.bundle.work / "typescript").read_text().replace("\r", "").splitlines()
    assert [line for line in said if line in ("got:by hand", "7 0", "/dev/pts/0")] == [
        "got:by hand",
        "7 0",
        "/dev/pts/0",
    ]


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


class Console:
    """A socket that a runtime sends a terminal's master to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.listener.settimeout(20)
        self.master = -1

    def receive(self) -> None:
        """Take the master."""
        connection, _ = self.listener.accept()
        with connection:
            _, ancillary, _, _ = connection.recvmsg(100, socket.CMSG_SPACE(4))
        self.master = array.array("i", ancillary[0][2])[0]

    def read_until(self, text: bytes) -> bytes:
        """Read what is shown until it contains a text."""
        shown = b""
        os.set_blocking(self.master, False)

        def look() -> bool:
            nonlocal shown
            with contextlib.suppress(BlockingIOError):
                shown += os.read(self.master, 4096)
            return text in shown

        eventually(look, f"the terminal shows {text!r}", 20)
        return shown

    def close(self) -> None:
        """Close everything."""
        self.listener.close()
        if self.master >= 0:
            os.close(self.master)


@pytest.fixture
def consoles(woodfrog: Woodfrog) -> Iterator[list[Console]]:
    """Three places for terminals."""
    made = [Console(woodfrog.directory / name) for name in ("tty1", "tty2", "tty3")]
    yield made
    for console in made:
        console.close()


def test_a_terminal_is_kept_with_its_size_its_modes_and_its_foreground_group(
    woodfrog: Woodfrog, consoles: list[Console]
) -> None:
    script = (
        "stty -echo rows 33 cols 77; read line; echo got:$line; stty size; stty -a | grep -c -- "
        "'-echo '; read line; echo then:$line; trap 'echo int' INT; while :; do sleep 0.05; done"
    )
    bundle = shell(woodfrog, script)
    bundle.process["terminal"] = True
    first, second, _ = consoles
    container = woodfrog.run(bundle, flags=("--console-socket", str(first.path)))
    first.receive()

    def is_set_up() -> bool:
        with open(f"/proc/{container.init}/fd/0") as terminal:
            return not termios.tcgetattr(terminal)[3] & termios.ECHO

    eventually(is_set_up, "the program sets its terminal up")
    image = frozen(container)

    restored = woodfrog.restore(bundle, image, "--console-socket", str(second.path))
    second.receive()
    os.write(second.master, b"hello\n")
    second.read_until(b"got:hello\r\n33 77\r\n1\r\n")
    os.write(second.master, b"again\n")
    second.read_until(b"then:again\r\n")
    assert not restored.has_ended()
    os.write(second.master, b"\x03")
    second.read_until(b"int")


@pytest.mark.parametrize("own", [False, True], ids=["no terminal", "a terminal"])
def test_a_terminal_of_exec_is_hung_up_or_the_containers_own(
    own: bool, woodfrog: Woodfrog, consoles: list[Console]
) -> None:
    bundle = shell(
        woodfrog, f": > /work/ready; {WAIT}; while [ ! -e /work/out ]; do sleep 0.02; done"
    )
    bundle.process["terminal"] = own
    first, second, third = consoles
    flags = ("--console-socket", str(first.path)) if own else ()
    container = woodfrog.run(bundle, flags=flags)
    if own:
        first.receive()
    container.wait_for("ready")
    inner = (
        "exec 9<>/dev/tty; trap 'echo hangup > /work/out; exit' HUP; : > /work/joined;"
        f"{WAIT}; echo here >&9; read line && echo $line > /work/out; sleep 5"
    )
    woodfrog(
        "exec",
        "--tty",
        "--detach",
        "--console-socket",
        str(third.path),
        container.name,
        "/bin/sh",
        "-c",
        inner,
    )
    third.receive()
    container.wait_for("joined")
    image = frozen(container)

    flags = ("--console-socket", str(second.path)) if own else ()
    restored = woodfrog.restore(bundle, image, *flags)
    if own:
        second.receive()
    (bundle.work / "check").touch()
    if own:
        second.read_until(b"here")
        os.write(second.master, b"a line\n")

    assert restored.wait() == 0
    assert (bundle.work / "out").read_text() == ("a line\n" if own else "hangup\n")


@pytest.mark.parametrize("clock", ["container", "host"])
def test_uptime_goes_on_from_the_freeze_or_is_that_of_the_host(
    clock: str, woodfrog: Woodfrog
) -> None:
    script = "cat /proc/uptime > /work/before; : > /work/ready; "
    script += f"{WAIT}; cat /proc/uptime > /work/after"
    container = woodfrog.run(shell(woodfrog, script))
    container.wait_for("ready")
    image = frozen(container)
    time.sleep(3)

    restored = woodfrog.restore(container.bundle, image, f"--clock={clock}")
    (restored.bundle.work / "check").touch()

    assert restored.wait() == 0
    before, after = (
        float((container.bundle.work / name).read_text().split()[0]) for name in ("before", "after")
    )
    passed = after - before
    assert passed >= 3 if clock == "host" else 0 <= passed < 2.5


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
            eventually((volume / "ready").exists, "it is ready", 20)
            assert not scratch.exists()
            woodfrog("checkpoint", f"--image-path={tmp_path / 'image'}", first)
            assert do.wait(30) == 128 + 9
        finally:
            do.kill()
            scratch.unlink(missing_ok=True)
    (volume / "check").touch()

    flags = (f"--image-path={tmp_path / 'image'}", f"--volume={volume}:/v")
    woodfrog("restore", "--do", *flags, second, status=3)

    assert (volume / "out").read_text() == "scratch\n"
    assert not scratch.exists()
