"""The door: finds the command, runs it, and turns errors into a line and an exit status."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.cli.flags import Command, Common, Flag

SPEC_VERSION = "1.2.0"
DEFAULT_ROOT = "/run/woodfrog"

# Every command and what it is for, in the order of the help. Its module has the same name.
COMMANDS = {
    "run": "create a container, start it, and stay with it",
    "create": "create a container; its program waits for start",
    "start": "start the program of a created container",
    "checkpoint": "freeze a running container into one file",
    "restore": "thaw a container from an image",
    "rollback": "set a running container back to an image, in place",
    "check": "say what keeps a container from being saved, or what this kernel lacks",
    "do": "run a command in a sandbox over this host's files",
    "state": "show the state of a container",
    "list": "list the containers",
    "ps": "list the processes of a container",
    "exec": "run another process in a container",
    "kill": "send a signal to a container",
    "warm": "hold an image in memory, for containers that share it",
    "wait": "wait for a container's end, a checkpoint or a restore",
    "pause": "stop every process of a container",
    "resume": "let a paused container run on",
    "update": "change the limits of a container",
    "events": "show what a container uses, and when it runs out of memory",
    "delete": "remove a container",
    "tar": "write a container's changed files as an archive",
    "spec": "write a config.json to start from",
    "inspect": "show what is in an image",
    "verify": "check every byte of an image",
    "merge": "make one image of one that builds on others",
    "features": "show what this runtime can do, for engines",
    "cpu-features": "show what this CPU offers programs",
    "docker": "what `docker woodfrog` does",
    "install": "make woodfrog known to an engine",
    "uninstall": "take it out of an engine's configuration",
    "criu": "answer for CRIU when an engine asks for its version",
}

# What another runtime has, and what there is here instead.
REFUSED = {
    "fscheckpoint": "`woodfrog tar rootfs-upper` writes what has changed in the root file system,"
    " and `woodfrog checkpoint --with-rootfs` stores it in an image",
}


def main(words: list[str] | None = None, asked: str = "0") -> int:
    """Run one command line; returns the exit status.

    `asked` tells whether another process has been asked to do it: see cli/keeper.py.
    """
    try:
        return _run(words, asked)
    except KeyboardInterrupt:
        sys.stderr.write("woodfrog: interrupted\n")
        return 130


def _run(words: list[str] | None, asked: str) -> int:
    if words is None:
        words = sys.argv[1:]
    # msgspec imports it if it is there, for what this Python's typing has: 20 ms for nothing.
    sys.modules.setdefault("typing_extensions", None)  # type: ignore[arg-type]
    _open_standard_descriptors()
    if words in (["--version"], ["-version"], ["-v"]):
        return _version()
    import gc

    # A command lives for milliseconds and makes no cycles worth collecting.
    gc.disable()
    from woodfrog.cli import flags, report
    from woodfrog.errors import AbandonedError, WoodfrogError

    common = flags.Common()
    common.words = words
    common.asked = asked
    try:
        return _dispatch(words, common)
    except BrokenPipeError:
        return 141
    except AbandonedError:
        return 1  # nobody is there to be told
    except Exception as error:
        report.failure(error, common)
        return error.exit_status if isinstance(error, WoodfrogError) else 1


def _open_standard_descriptors() -> None:
    """Let no file of ours become somebody's stdin, stdout or stderr, if we got none."""
    import os

    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open("/dev/null", os.O_RDWR), True)
    if sys.stdout is None or sys.stderr is None:
        sys.stdout = sys.stdout or open(1, "w", closefd=False)
        sys.stderr = sys.stderr or open(2, "w", closefd=False)


def _version() -> int:
    import os

    from woodfrog import __version__

    text = f"woodfrog version {__version__}\ncommit: {_commit()}\nspec: {SPEC_VERSION}\n"
    os.write(1, text.encode())
    return 0


def _commit() -> str:
    """Return the commit of a clone, read from git's own files, or "unknown"."""
    git = __file__.rpartition("/src/woodfrog/")[0] + "/.git/"
    try:
        with open(git + "HEAD", encoding="ascii") as file:
            head = file.read().strip()
        if not head.startswith("ref: "):
            return head
        with open(git + head[5:], encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return "unknown"


def _dispatch(words: list[str], common: Common) -> int:
    import os

    from woodfrog.cli import flags, rights

    known = _global_flags()
    own = flags.parse(words, known, who="help", greedy_after=0, rarer=_policies)
    # Later commands, which may be given from elsewhere, find the same places.
    common.root = os.path.abspath(own["root"])
    common.log = os.path.abspath(own["log"]) if own["log"] else ""
    common.log_format, common.debug = own["log_format"], own["debug"]
    common.systemd_cgroup = own["systemd_cgroup"]
    common.config = os.path.abspath(own["config"]) if own["config"] else ""
    common.policies = {key: own[key] for key in own.given - {flag.key for flag in known}}
    if own["version"]:
        return _version()
    if own["rootless"] not in ("auto", "false"):
        from woodfrog.errors import UsageError

        raise UsageError("--rootless is not supported yet", hint="run woodfrog as root")
    name, *rest = own.rest or ["help"]
    if name == "help" or own["help"]:
        return _help(
            [word for word in rest if not word.startswith("-")] if name == "help" else [name]
        )
    if name not in COMMANDS and rest in (["-h"], ["-help"], ["--help"]):
        return _help([name])
    command = _find(name)
    # Help can be asked for anywhere before a command line that isn't ours.
    help_flag = flags.Flag("help", "show this help", short="h")
    arguments = flags.parse(
        rest,
        (*command.flags, help_flag),
        who=name,
        greedy_after=command.greedy_after,
        loose=command.loose,
    )
    if arguments["help"]:
        return _help([name])
    flags.check_count(command, arguments.rest)
    rights.check(name)
    arguments.common = common
    return command.run(arguments) or 0


def _find(name: str) -> Command:
    from woodfrog.cli import flags

    if name in REFUSED:
        from woodfrog.errors import UsageError

        raise UsageError(f"{name} is not supported", hint=REFUSED[name])
    if name not in COMMANDS:
        raise flags.unknown("command", name, list(COMMANDS), "woodfrog --help")
    module_name = "exec_" if name == "exec" else name.replace("-", "_")
    # (importlib's function for it costs a millisecond.)
    command: Command = __import__(f"woodfrog.cli.{module_name}", fromlist=("COMMAND",)).COMMAND
    return command


def _global_flags() -> tuple[Flag, ...]:
    from woodfrog.cli.flags import Flag

    return (
        Flag("root", "where the state of containers is kept", value="DIR", default=DEFAULT_ROOT),
        Flag("log", "append errors and warnings to this file", value="FILE", default=""),
        Flag("log-format", "how", value="FORMAT", default="text", choices=("text", "json")),
        Flag("config", "a file of policies, if not /etc/woodfrog/config.toml", value="FILE"),
        Flag("debug", "tell what happens, and where in woodfrog an error comes from"),
        Flag("systemd-cgroup", "have systemd make the cgroups (cgroupsPath is slice:prefix:name)"),
        Flag("rootless", "only for engines that give it", value="WORD", default="auto"),
        Flag("version", "show the version", short="v"),
        Flag("help", "show this help", short="h"),
    )


def _policies() -> tuple[Flag, ...]:
    from woodfrog.cli.policies import POLICIES

    return POLICIES


def _help(names: list[str]) -> int:
    from woodfrog.cli import flags

    if names == ["policies"]:
        from woodfrog.cli import policies

        sys.stdout.write(policies.help_text())
        return 0
    if names and names[0] not in COMMANDS:
        from woodfrog.errors import UsageError

        hint = flags.guess(names[0], list(COMMANDS), "woodfrog --help")
        raise UsageError(f"No help topic for '{names[0]}'", hint=hint)
    if names:
        sys.stdout.write(flags.help_text(_find(names[0])))
        return 0
    lines = [
        "usage: woodfrog [global flags] COMMAND [flags] [arguments]",
        "",
        "woodfrog runs containers, freezes them into one file, and thaws them elsewhere.",
        "",
        "commands:",
        *(f"  {name:<13} {about}" for name, about in COMMANDS.items()),
        "",
        "global flags:",
        *flags.flag_lines(_global_flags()),
        "",
        "`woodfrog COMMAND --help` says more about each command, `woodfrog help policies` which",
        "of their flags may also stand here, in annotations, and in a file.",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
