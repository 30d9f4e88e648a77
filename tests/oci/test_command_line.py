"""The command line: the ways to type an option, help, mistakes, and what a command imports."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bundles import Bundle
from containers import REPOSITORY, Woodfrog
from woodfrog.cli import flags
from woodfrog.cli.main import COMMANDS
from woodfrog.errors import UsageError

Make = Callable[[str], Bundle]
Name = Callable[[Bundle], str]

FLAGS = (
    flags.Flag("image-path", "where", value="DIR"),
    flags.Flag("bundle", "what", short="b", value="DIR", default="."),
    flags.Flag("no-subreaper", "not"),
    flags.Flag("env", "variables", short="e", value="NAME=VALUE", many=True),
    flags.Flag("pre-dump", "", refused="not done yet"),
)


@pytest.mark.parametrize(
    "line",
    [
        "--image-path=DIR ID",
        "--image-path DIR ID",
        "-image-path DIR ID",
        "-image-path=DIR ID",
        "ID --image-path DIR",
        "ID -image-path=DIR",
    ],
)
def test_options_are_taken_as_people_type_them(line: str) -> None:
    found = flags.parse(line.split(), FLAGS, who="x")
    assert found["image_path"] == "DIR"
    assert found.rest == ["ID"]


def test_switches_lists_and_defaults() -> None:
    words = ["-no-subreaper", "-e", "A=1", "--env=B=2", "-b", "/x", "--", "--image-path"]
    found = flags.parse(words, FLAGS, who="x")
    assert found["no_subreaper"] is True
    assert found["env"] == ["A=1", "B=2"]
    assert found["bundle"] == "/x"
    assert found["image_path"] is None
    assert found.rest == ["--image-path"]
    assert flags.parse(["--no-subreaper=false"], FLAGS, who="x")["no_subreaper"] is False


@pytest.mark.parametrize(
    "line, message, hint",
    [
        ("--image-pat=x", "unknown flag --image-pat", "did you mean --image-path?"),
        ("-bundel x", "unknown flag -bundel", "did you mean --bundle?"),
        ("--qqqqqqqqqq", "unknown flag --qqqqqqqqqq", "`woodfrog x --help` lists them all"),
        ("--image-path", "flag needs an argument: --image-path=DIR", ""),
        ("--no-subreaper=perhaps", "--no-subreaper is a switch", ""),
        ("--pre-dump", "--pre-dump is not supported: not done yet", ""),
    ],
)
def test_mistakes_are_named(line: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        flags.parse(line.split(), FLAGS, who="x")
    assert message in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(woodfrog: Woodfrog, command: str) -> None:
    text = woodfrog(command, "--help").stdout
    assert text.startswith(f"usage: woodfrog {command}")
    examples = text.partition("examples:\n")[2].splitlines()
    assert len(examples) >= 2
    assert all("woodfrog" in line for line in examples)
    assert woodfrog("help", command).stdout == text


def test_an_unknown_command_is_guessed(woodfrog: Woodfrog) -> None:
    done = woodfrog("chekpoint", status=1)
    assert done.stderr.splitlines() == [
        "woodfrog: unknown command chekpoint",
        "  hint: did you mean checkpoint?",
    ]
    assert "commands:" in woodfrog().stdout
    for words in (("help", "chekpoint"), ("chekpoint", "-h")):
        assert "No help topic for 'chekpoint'" in woodfrog(*words, status=1).stderr


def test_the_version_has_the_three_lines_that_engines_parse(woodfrog: Woodfrog) -> None:
    first, second, third = woodfrog("--version").stdout.splitlines()
    assert first.startswith("woodfrog version ")
    assert second.startswith("commit: ")
    assert third.startswith("spec: 1.")


def test_features_are_json(woodfrog: Woodfrog) -> None:
    found = json.loads(woodfrog("features").stdout)
    assert "rbind" in found["mountOptions"]
    assert "createRuntime" in found["hooks"]
    assert found["linux"]["seccomp"]["enabled"] is True
    assert found["linux"]["intelRdt"]["enabled"] is False
    assert "org.woodfrog." in found["potentiallyUnsafeConfigAnnotations"]


def test_a_config_to_start_from(woodfrog: Woodfrog, tmp_path: Path) -> None:
    woodfrog("spec", "--bundle", str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["process"]["args"] == ["sh"]
    assert "exists already" in woodfrog("spec", "-b", str(tmp_path), status=1).stderr
    (tmp_path / "config.json").unlink()
    woodfrog("spec", "--rootless", "-b", str(tmp_path))
    linux = json.loads((tmp_path / "config.json").read_text())["linux"]
    kinds = [entry["type"] for entry in linux["namespaces"]]
    assert "user" in kinds
    assert "network" not in kinds
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]


def test_the_image_path_must_be_given(woodfrog: Woodfrog, make_bundle: Make) -> None:
    container = woodfrog.run(make_bundle("exec sleep 1000"))
    assert "--image-path is missing" in woodfrog("checkpoint", container.name, status=1).stderr
    assert "--image-path is missing" in woodfrog("restore", container.name, status=1).stderr


def test_the_launcher_works_through_links_and_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(REPOSITORY / "woodfrog")
    (tmp_path / "two").symlink_to("one")
    for command in ("./two", str(tmp_path / "two"), str(REPOSITORY / "woodfrog")):
        done = subprocess.run([command, "help", "run"], cwd=tmp_path, capture_output=True)
        assert done.stdout.startswith(b"usage: woodfrog run"), done


def test_an_interrupt_in_the_first_moment_is_told_in_a_line(tmp_path: Path) -> None:
    """It comes when the launcher begins to load the command, and at each module that is loaded."""
    interrupt = "import os, signal; os.kill(os.getpid(), signal.SIGINT)\n"
    package = tmp_path / "src/woodfrog/cli"
    package.mkdir(parents=True)
    (package / "main.py").write_text(interrupt)
    shutil.copy(REPOSITORY / "woodfrog", tmp_path)
    loading = """
import sys
sys.path.append(sys.argv.pop(1))
left = int(sys.argv.pop(1))
import importlib.abc
class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        global left
        left -= 1
        if not left:
            raise KeyboardInterrupt
from woodfrog.cli.main import main
sys.meta_path.insert(0, Interrupting())
status = main()
sys.exit(status)
"""
    python = [str(REPOSITORY / ".venv/bin/python"), "-I", "-S", "-c", loading]
    commands = [[str(tmp_path / "woodfrog"), "list"]]
    commands += [[*python, str(REPOSITORY / "src"), str(at), "list"] for at in range(1, 6)]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (130, "woodfrog: interrupted\n")


def _imports(woodfrog: Woodfrog, *arguments: str, status: int = 0) -> set[str]:
    program = (
        "import sys; sys.path.append(sys.argv.pop(1))\n"
        "from woodfrog.cli.main import main\n"
        "status = main()\n"
        "sys.stderr.write('MODULES ' + ' '.join(sys.modules))\n"
        "sys.exit(status)"
    )
    python = REPOSITORY / ".venv/bin/python"
    command = [str(python), "-I", "-S", "-c", program, str(REPOSITORY / "src")]
    options = ["--root", str(woodfrog.root)]
    done = subprocess.run(
        [*command, *options, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == status, done.stderr
    return set(done.stderr.rpartition("MODULES ")[2].split())


def test_cheap_commands_import_little(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    bundle = make_bundle("exec sleep 1000 > /dev/null 2>&1")
    name = new_name(bundle)
    for arguments in (
        ("create", "-b", str(bundle.directory), name),
        ("start", name),
        ("state", name),
        ("list",),
        ("ps", name),
        ("pause", name),
        ("resume", name),
        ("exec", name, "true"),
        ("kill", name, "KILL"),
        ("wait", name),
        ("delete", "--force", name),
        ("run", "-b", str(bundle.directory), "--help"),
    ):
        if arguments[0] == "create":
            # The container's stdio is that of create: a file, so that nobody waits for its end.
            woodfrog(*arguments, output=bundle.directory / "output")
            continue
        found = _imports(woodfrog, *arguments)
        heavy = {"argparse", "json", "enum", "dataclasses", "pathlib", "subprocess", "logging"}
        heavy -= {"enum"}  # the caller protocol's typing brings it
        heavy |= {"msgspec", "shutil", "inspect", "socket", "xxhash", "zstandard"}
        assert not found & heavy, (arguments, found & heavy)
        assert not found & {"tomllib", "woodfrog.cli.policies"}, arguments
        if arguments[0] in ("state", "list", "kill", "pause", "resume", "delete"):
            assert not found & {"ctypes", "struct", "importlib.util", "woodfrog.runtime.create"}
        for layer in ("engine", "resources", "remote", "image"):
            assert not any(m.startswith(f"woodfrog.{layer}") for m in found), (arguments, layer)


def test_without_root_it_says_what_is_missing(make_bundle: Make) -> None:
    bundle = make_bundle("true")
    bundle.save()
    if os.geteuid() != 0:
        pytest.skip("needs root, to give it up")
    command = [str(REPOSITORY / "woodfrog"), "--root", "/tmp/none", "create", "x"]
    program = "import os, sys; os.setuid(65534); os.chdir('/'); os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        ["python3", "-c", program, *command, "-b", str(bundle.directory)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) <= 2
    without = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    done = subprocess.run(
        [*without, *command, "-b", str(bundle.directory)], capture_output=True, text=True
    )
    assert "needs CAP_SYS_ADMIN" in done.stderr
    assert "start it with --privileged" in done.stderr


def test_the_root_of_a_rootless_engine_is_told(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle("true")
    bundle.save()
    root = tmp_path / "root"
    root.mkdir(mode=0o700)
    os.chown(root, 1000, 1000)
    there = ["unshare", "--user", "--map-root-user", str(REPOSITORY / "woodfrog"), "--root", root]
    done = subprocess.run(
        [*there, "create", "-b", bundle.directory, "x"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"cannot make {root}/x: Permission denied" in done.stderr
    assert "needs the host's root, which a rootless engine is not" in done.stderr


def test_without_procfs_it_says_so(woodfrog: Woodfrog) -> None:
    script = 'mount -t tmpfs tmpfs /proc && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", *woodfrog.command("state", "x")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "woodfrog: no procfs is mounted at /proc\n" in done.stderr


def test_without_stdio_the_container_has_dev_null(
    woodfrog: Woodfrog, make_bundle: Make, new_name: Name
) -> None:
    show = "has=$(readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2)"
    bundle = make_bundle(f'{show}; echo "$has" > /work/stdio; exit 3')
    command = woodfrog.command("run", "-b", str(bundle.directory), new_name(bundle))
    script = 'exec "$@" 0<&- 1>&- 2>&-'
    assert subprocess.run(["sh", "-c", script, "sh", *command]).returncode == 3
    assert (bundle.work / "stdio").read_text() == "/dev/null\n" * 3
    wrong = ["sh", "-c", script, "sh", *woodfrog.command("state", "nobody")]
    assert subprocess.run(wrong).returncode == 1
