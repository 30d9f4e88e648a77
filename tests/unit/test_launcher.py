"""The launcher: command lines that a keeper or a template is asked for, and where Python starts."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from containers import REPOSITORY
from woodfrog.cli import checkpoint, flags, main, restore, rollback

COMMANDS = {
    "checkpoint": checkpoint.COMMAND,
    "rollback": rollback.COMMAND,
    "restore": restore.COMMAND,
}
LINES = (
    "--root=ROOT rollback --image-path=/a one",
    "--root=ROOT rollback one --image-path /a --stats",
    "--root ROOT rollback --image-path /a --parent=x --parent y one",
    "--root=ROOT --log-format json --debug checkpoint -leave-running --image-path= one",
    "--log /l --root=/a -root ROOT checkpoint --compression zstd one --sync none --pre-dump",
    "--root ROOT rollback --file-validation size --image-path two one",
    "--debug=false -root=ROOT checkpoint --stats=true one",
    "--root=ROOT restore --detach --template=t -b /b many",
    "--root=ROOT restore one -d --template a --template t --bundle=/b",
    "--log /l --root=ROOT restore -template t --count=3 -b /b many",
)
LEFT = (
    "",
    "--root=ROOT rollback",
    "--root=ROOT rollback --image-path",
    "--root=ROOT rollback --image-path=/a",
    "--root=ROOT rollback one two",
    "--root=ROOT rollback a/b",
    "--root=ROOT rollback -- one",
    "--root=ROOT rollback - one",
    "--root=ROOT rollback --help one",
    "--root=ROOT rollback --unknown one",
    "--root= rollback one",
    "--root",
    "--root=ROOT --compression=zstd checkpoint one",
    "--root=ROOT --help checkpoint one",
    "--root=ROOT checkpoint --status-fd=5 one",
    "--root=ROOT checkpoint --dry-run one",
    "--root=ROOT state rollback",
    "--root=ROOT help rollback",
    "--root=ROOT exec rollback checkpoint",
    "--root=ROOT restore --template=t -b /b attached",
    "--root=ROOT restore --detach --image-path=/i one",
    "--root=ROOT restore --detach one",
    "--root=ROOT restore --detach --template=t --pid-file=/p one",
    "--root=ROOT restore --detach --template=../t one",
    "--root=ROOT restore --detach one --template",
    "--root=ROOT restore --detach=false --template=t one",
    "rollback --image-path=/a one",
)
ASK = "src/woodfrog/runtime/code/ask_x86_64"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which what would be executed says so, one argument a line."""
    clone = tmp_path_factory.mktemp("clone")
    tells = '#!/bin/sh\nprintf "%s\\n" "${0##*/}" "$@"\n'
    for name in (ASK, ".venv/bin/python"):
        (clone / name).parent.mkdir(parents=True)
        (clone / name).write_text(tells)
        (clone / name).chmod(0o755)
    shutil.copy2(REPOSITORY / "woodfrog", clone)
    return clone


def executed(launcher: Path, *words: str) -> list[str]:
    """Return what a launcher executes, and with which arguments, START left out."""
    done = subprocess.run([launcher, *words], capture_output=True, text=True, check=True)
    before, start, after = done.stdout.partition("\nimport sys\n")
    assert start
    return [*before.split("\n"), *after.rpartition("_exit(status)\n")[2].split("\n")[1:-1]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root in which a container `one` has a keeper, and there is a template `t`."""
    for directory, name in (("r/one", "keeper"), ("r.templates/t", "socket")):
        (tmp_path / directory).mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(tmp_path / directory / name))
    return tmp_path / "r"


@pytest.mark.parametrize("line", LINES)
def test_what_it_asks_for_is_what_the_whole_parser_reads(
    line: str, clone: Path, root: Path
) -> None:
    words = line.replace("ROOT", str(root)).split()
    own = flags.parse(words, main._global_flags(), who="help", greedy_after=0)
    name, *rest = own.rest
    found = flags.parse(rest, COMMANDS[name].flags, who=name)
    [id] = found.rest
    if name == "restore":
        assert found["detach"] or found["count"]
        door, kind = f"{own['root']}.templates/{found['template']}/socket", "detached"
    else:
        door, kind = f"{own['root']}/{id}/keeper", "run"
    python = [f"{clone}/.venv/bin/python", "-I", "-S", "-c"]
    started = [f"{clone}/woodfrog", "0", f"{clone}/src/woodfrog", *words]
    assert executed(clone / "woodfrog", *words) == ["ask_x86_64", door, kind, *python, "", *started]


@pytest.mark.parametrize("line", LEFT)
def test_what_is_not_understood_is_left_to_the_whole_parser(
    line: str, clone: Path, root: Path
) -> None:
    words = line.replace("ROOT", str(root)).split()
    started = [f"{clone}/woodfrog", "0", f"{clone}/src/woodfrog", *words]
    assert executed(clone / "woodfrog", *words) == ["python", "-I", "-S", "-c", "", *started]


def test_the_flags_are_those_of_the_commands() -> None:
    """What the launcher knows takes a value there if it does here."""
    script = (REPOSITORY / "woodfrog").read_text()
    table = script.partition("case $command:$name in\n")[2].partition("*) return 1 ;;")[0]
    of_commands = {name: command.flags for name, command in COMMANDS.items()}
    compared = 0
    for name, proper in (of_commands | {"": main._global_flags()}).items():
        takes_value = {flag.name: bool(flag.value) for flag in proper if not flag.refused}
        takes_value |= {flag.short: bool(flag.value) for flag in proper if flag.short}
        for line in table.splitlines():
            patterns, _, does = line.strip().partition(")")
            for command, _, flag in (one.strip().partition(":") for one in patterns.split("|")):
                if command == name and flag:
                    assert takes_value[flag] == ("takes_value=yes" in does), line
                    compared += 1
    assert compared == table.count(":")


def test_nobody_is_asked_where_there_is_nobody(clone: Path, tmp_path: Path) -> None:
    words = f"--root={tmp_path} rollback --image-path=/i one"
    assert executed(clone / "woodfrog", *words.split())[0] == "python"


def test_it_finds_what_pip_has_installed(
    clone: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lib/python3.11/site-packages/woodfrog"
    shutil.copytree(clone / "src/woodfrog", package)
    (tmp_path / "bin").mkdir()
    for name in ("python3", "python3.11"):
        shutil.copy2(clone / ".venv/bin/python", tmp_path / "bin" / name)
    shutil.copy2(clone / "woodfrog", tmp_path / "bin")
    (tmp_path / "link").symlink_to("bin/woodfrog")
    there = f"{tmp_path}/bin/../lib/python3.11/site-packages/woodfrog"
    python = [f"{tmp_path}/bin/python3.11", "-I", "-s", "-c", ""]
    for command in ("bin/woodfrog", "link"):
        path = f"{tmp_path}/{command}"
        words = [f"--root={root}", "rollback", "one"]
        started = [path, "0", there, *words]
        assert executed(Path(path), *words) == [
            *("ask_x86_64", f"{root}/one/keeper", "run"),
            *python,
            *started,
        ]
        started = [path, "0", there, "list"]
        assert executed(Path(path), "list") == ["python3.11", *python[1:], *started]
    # Where only another directory has that Python.
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "bin/python3.11").rename(tmp_path / "elsewhere/python3.11")
    monkeypatch.setenv("PATH", f"{tmp_path}/elsewhere:{os.environ['PATH']}")
    assert executed(tmp_path / "link", "list")[0] == "python3.11"


def test_it_says_that_there_is_no_python(clone: Path, tmp_path: Path) -> None:
    shutil.copy2(clone / "woodfrog", tmp_path)
    done = subprocess.run(
        ["/bin/sh", tmp_path / "woodfrog", "list"], env={"PATH": "/none"}, capture_output=True
    )
    assert done.returncode == 127
    assert done.stderr.startswith(b"woodfrog: there is no python3 on the PATH")


def test_the_usual_root_is_that_of_the_whole_parser() -> None:
    assert f"root={main.DEFAULT_ROOT} " in (REPOSITORY / "woodfrog").read_text()


def test_the_program_that_asks_is_what_build_makes(tmp_path: Path) -> None:
    code = REPOSITORY / ASK
    subprocess.run([code.parent / "build", tmp_path / "ask"], check=True)
    assert (tmp_path / "ask").read_bytes() == code.read_bytes()
    assert os.access(code, os.X_OK)


class Asked:
    """A socket at which the program asks, and the program."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(str(directory / "door"))
        self._listening.listen()

    def close(self) -> None:
        """Answer no more."""
        self._listening.close()

    def start(
        self, *words: str, door: str = "", by: Sequence[str] = (), **flags: object
    ) -> subprocess.Popen[str]:
        """Have it ask for words, started `by` something; what it falls back to tells its words."""
        python = ["/bin/sh", "-c", 'echo "$0" "$@"', "-c", "-", "command", "0", "/package"]
        return subprocess.Popen(
            [*by, REPOSITORY / ASK, door or self.directory / "door", "kind", *python, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **flags,  # type: ignore[call-overload]
        )

    @contextmanager
    def accept(self) -> Iterator[socket.socket]:
        """Take its request, and have what it has sent meanwhile."""
        connection, _ = self._listening.accept()
        with connection:
            self.message, self.sent, _, _ = socket.recv_fds(connection, 100, 100)
            try:
                yield connection
            finally:
                for descriptor in self.sent:
                    os.close(descriptor)

    def request(self) -> bytes:
        """Return what is in the memfd of the request."""
        return os.pread(self.sent[0], 1 << 20, 0)


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    """Somebody who is asked."""
    asked = Asked(tmp_path)
    yield asked
    asked.close()


def ended(program: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the end of a program; returns its exit status and what it wrote."""
    out, err = program.communicate(timeout=10)
    return program.returncode, out, err


def numbers(*values: int) -> bytes:
    """Return values as they are sent."""
    return b"".join(value.to_bytes(4, "little") for value in values)


def test_the_request_has_all_of_the_command(asked: Asked) -> None:
    environment = {"ONE": "1", "EMPTY": "", "LAST": "x" * 5000}
    program = asked.start(
        "words", "", "ünd", env=environment, cwd="/usr", umask=0o27, stdin=subprocess.DEVNULL
    )
    with asked.accept() as connection:
        strings = [b"/package", b"words", b"", "ünd".encode(), b"ONE=1", b"EMPTY="]
        strings.append(b"LAST=" + b"x" * 5000)
        assert asked.message == b"kind"
        assert asked.request() == numbers(0o27, 3) + b"".join(one + b"\0" for one in strings)
        links = [os.readlink(f"/proc/self/fd/{one}") for one in asked.sent]
        assert links[1:3] == ["/usr", "/dev/null"]
        assert links[3] == os.readlink(f"/proc/{program.pid}/fd/1")
        assert links[4] == os.readlink(f"/proc/{program.pid}/fd/2")
        connection.send(numbers(12345))
        connection.send(numbers(7))
    assert ended(program) == (7, "", "")


def test_it_sends_no_words_and_no_environment(asked: Asked) -> None:
    program = asked.start(env={})
    with asked.accept() as connection:
        assert asked.request()[4:] == numbers(0) + b"/package\0"
        connection.send(numbers(1))
        connection.send(numbers(0))
    assert ended(program) == (0, "", "")


@pytest.mark.parametrize("answers, mark", [(0, "1"), (1, "2")])
def test_python_does_what_is_not_done(answers: int, mark: str, asked: Asked) -> None:
    program = asked.start("some", "words")
    with asked.accept() as connection:
        for _ in range(answers):
            connection.send(numbers(1))
    assert ended(program) == (0, f"-c - command {mark} /package some words\n", "")


@pytest.mark.parametrize("door", ["nobody", "", "x" * 107, "y" * 5000])
def test_python_does_it_where_nobody_answers(door: str, asked: Asked, tmp_path: Path) -> None:
    program = asked.start("word", door=f"{tmp_path}/{door}")
    assert ended(program) == (0, "-c - command 1 /package word\n", "")


def test_python_does_it_if_a_standard_descriptor_is_closed(asked: Asked) -> None:
    program = asked.start("word", preexec_fn=lambda: os.close(0))
    assert ended(program) == (0, "-c - command 1 /package word\n", "")


@pytest.mark.parametrize(
    "status, end, said",
    [
        (0, 0, ""),
        (1, 130, "woodfrog: interrupted\n"),
        (None, 130, "woodfrog: interrupted\n"),
    ],
)
def test_an_interrupt_is_passed_on(status: int | None, end: int, said: str, asked: Asked) -> None:
    """Whoever works hears of it; what it has done all the same counts."""
    program = asked.start("word")
    with asked.accept() as connection:
        connection.send(numbers(1))
        program.send_signal(signal.SIGINT)
        assert connection.recv(4) == b""
        assert program.poll() is None
        if status is not None:
            connection.send(numbers(status))
    assert ended(program) == (end, "", said)


def test_an_interrupt_that_was_ignored_is_ignored(asked: Asked) -> None:
    program = asked.start("word", by=["/bin/sh", "-c", 'trap "" INT; exec "$@"', "-"])
    with asked.accept() as connection:
        connection.send(numbers(1))
        program.send_signal(signal.SIGINT)
        connection.send(numbers(3))
    assert ended(program) == (3, "", "")
