"""woodfrog docker: what `docker woodfrog` does"""

from __future__ import annotations

import signal
import sys

from woodfrog.cli import flags, policies
from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.install import ASKING, carry_out
from woodfrog.errors import UsageError

NAME = "woodfrog"
METADATA = "docker-cli-plugin-metadata"


def run(arguments: Arguments) -> int:
    """Run one of the plugin's commands."""
    words = arguments.rest
    if words == [METADATA]:
        return _describe()
    # The client gives its own global options, then our name, and then our command.
    options: list[str] = []
    if words[:1] and words[0] not in SUBCOMMANDS and NAME in words:
        at = words.index(NAME)
        options, words = words[:at], words[at + 1 :]
    name, *rest = words or ["help"]
    if name in ("help", "--help", "-h"):
        return _help(rest[:1])
    if name not in SUBCOMMANDS:
        raise flags.unknown("command", name, list(SUBCOMMANDS), f"{PROGRAM} --help")
    command = SUBCOMMANDS[name]
    if rest and rest[0] in ("--help", "-h"):
        return _help([name])
    if name == "restore":  # its flags are docker's, too
        found = Arguments(name, command.flags)
        found.rest = rest
    else:
        found = flags.parse(_letters_apart(rest, command.flags), command.flags, who=name)
        flags.check_count(command, found.rest)
    from woodfrog.docker.client import ENDING, Docker

    for number in ENDING:
        signal.signal(number, signal.default_int_handler)
    found.values["docker"] = Docker(options)
    return command.run(found) or 0


def _letters_apart(words: list[str], known: tuple[Flag, ...]) -> list[str]:
    """Return words with `-ai`, as people write it for docker, as `-a -i`."""
    letters = {flag.short for flag in known if flag.short and not flag.value}
    apart: list[str] = []
    for word in words:
        cluster = word.startswith("-") and len(word) > 2 and letters.issuperset(word[1:])
        apart += [f"-{letter}" for letter in word[1:]] if cluster else [word]
    return apart


def _describe() -> int:
    """Tell docker's client what it asks of each plugin."""
    from woodfrog import __version__
    from woodfrog.runtime import jsontext

    about = {
        "SchemaVersion": "0.1.0",
        "Vendor": "woodfrog",
        "Version": __version__,
        "ShortDescription": "Freeze containers and thaw them into new ones",
    }
    sys.stdout.write(jsontext.write(about) + "\n")
    return 0


def _help(names: list[str]) -> int:
    if names and names[0] in SUBCOMMANDS:
        sys.stdout.write(flags.help_text(SUBCOMMANDS[names[0]]))
        return 0
    width = max(map(len, SUBCOMMANDS))
    lines = [
        f"usage: {PROGRAM} COMMAND",
        "",
        "Freeze containers that woodfrog runs, and thaw them into new ones.",
        "",
        "commands:",
        *(f"  {name:<{width}}  {one.about.splitlines()[0]}" for name, one in SUBCOMMANDS.items()),
        "",
        f"`{PROGRAM} COMMAND --help` says more about each command.",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _policies(arguments: Arguments) -> list[str]:
    """Return the policies that were given, as the runtime takes them."""
    given = []
    for flag in policies.of("checkpoint"):
        if flag.key in arguments.given:
            value = arguments[flag.key]
            given.append(f"--{flag.name}={value if flag.value else str(value).lower()}")
    return given


def _check(arguments: Arguments) -> int:
    from woodfrog.docker import freezing

    return freezing.check(arguments["docker"], arguments.rest[0], _policies(arguments))


def _checkpoint(arguments: Arguments) -> None:
    from woodfrog.docker import freezing

    name, *rest = arguments.rest
    where = freezing.freeze(
        arguments["docker"],
        name,
        rest[0] if rest else "",
        _policies(arguments),
        leave_running=arguments["leave_running"],
    )
    sys.stdout.write(f"{where}\n")


def _start(arguments: Arguments) -> int:
    from woodfrog.docker import thawing

    if not arguments["checkpoint"]:
        raise UsageError("start: --checkpoint is missing", hint="docker start starts without one")
    attach = [f"--{name}" for name in ("attach", "interactive") if arguments[name]]
    return thawing.start(
        arguments["docker"],
        arguments.rest[0],
        arguments["checkpoint"],
        arguments["checkpoint_dir"] or "",
        attach,
        thawing.WantedFiles(arguments["files_from"] or "", arguments["keep_files"]),
    )


def _restore(arguments: Arguments) -> int:
    from woodfrog.docker import thawing

    return thawing.restore(arguments["docker"], arguments.rest, flags.help_text(RESTORE))


def _list(arguments: Arguments) -> None:
    from woodfrog.docker import listing

    rows = listing.rows(arguments["docker"], arguments.rest)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        sys.stdout.write("   ".join(cells).rstrip() + "\n")


def _install(arguments: Arguments) -> int:
    from woodfrog.install import docker
    from woodfrog.install.editing import own_command

    edit = docker.plugin(own_command(), arguments["plugin_dir"] or docker.PLUGINS)
    return carry_out(arguments, [edit.install()], f"try it: {PROGRAM} --help")


def _uninstall(arguments: Arguments) -> int:
    from woodfrog.install import docker

    edit = docker.plugin("", arguments["plugin_dir"] or docker.PLUGINS)
    return carry_out(arguments, [edit.uninstall()], "docker doesn't know the command any more")


PROGRAM = "docker woodfrog"
FILES = (
    Flag(
        "files-from",
        "the container with the files that had been changed, if they are not in the checkpoint",
        value="CONTAINER",
    ),
    Flag("keep-files", "don't bring the files that the frozen container had changed"),
)
PLUGIN_DIR = Flag(
    "plugin-dir", "where docker's client looks for its plugins, if not for all users", value="DIR"
)

RESTORE = Command(
    "restore",
    "IMAGE [COMMAND]",
    "Create a container and start it with a checkpoint, of a container that may be gone.\n"
    "The flags are those of `docker create` and these. COMMAND, which is shown and which a later\n"
    "start without checkpoint runs, is the frozen container's unless given. The new container is\n"
    "detached unless --attach is among the flags; its id is printed.",
    (
        "docker woodfrog restore --from web:2026-11-24_22.13.05 --name web2 -p 8080:80 nginx",
        "docker woodfrog restore --from /srv/checkpoints/shell --attach STDOUT -it debian",
    ),
    (
        Flag(
            "from",
            "the checkpoint: of a container of docker's, or in a directory",
            value="CONTAINER:NAME|DIR",
        ),
        *FILES,
    ),
    _restore,
    program=PROGRAM,
)

SUBCOMMANDS = {
    command.name: command
    for command in (
        Command(
            "check",
            "CONTAINER",
            "Show what keeps a container from being frozen.\n"
            "It stands still for a moment; the exit status is 1 if there is something.",
            ("docker woodfrog check web", "docker woodfrog check --tcp-close web"),
            policies.of("checkpoint"),
            _check,
            program=PROGRAM,
        ),
        Command(
            "checkpoint",
            "CONTAINER [DIR]",
            "Freeze a container into a directory, or among the checkpoints that docker keeps.\n"
            "The container stops then, unless --leave-running. If anything fails, it runs on.",
            (
                "docker woodfrog checkpoint web",
                "docker woodfrog checkpoint web /srv/checkpoints/web",
            ),
            (Flag("leave-running", "let the container run on"), *policies.of("checkpoint")),
            _checkpoint,
            most=2,
            program=PROGRAM,
        ),
        Command(
            "start",
            "CONTAINER",
            "Start a container that was created, with a checkpoint of its own or another's.\n"
            "The files that the frozen container had changed come along.",
            (
                "docker woodfrog start --checkpoint one web",
                "docker woodfrog start --checkpoint web:one web2",
            ),
            (
                Flag(
                    "checkpoint", "which: one of its own, or of another's", value="[CONTAINER:]NAME"
                ),
                Flag("checkpoint-dir", "the directory with the checkpoint NAME", value="DIR"),
                Flag("attach", "show what it writes; its exit status comes back", short="a"),
                Flag("interactive", "give it our stdin", short="i"),
                *FILES,
            ),
            _start,
            program=PROGRAM,
        ),
        RESTORE,
        Command(
            "ls",
            "[CONTAINER|DIR …]",
            "List checkpoints: those that docker keeps, or in the directories given.",
            ("docker woodfrog ls", "docker woodfrog ls web /srv/checkpoints/web"),
            (),
            _list,
            least=0,
            most=None,
            program=PROGRAM,
        ),
        Command(
            "install",
            "",
            "Make `docker woodfrog` a command of docker's client.",
            (
                "woodfrog docker install",
                "woodfrog docker install --plugin-dir ~/.docker/cli-plugins",
            ),
            (PLUGIN_DIR, *ASKING),
            _install,
            least=0,
            most=0,
            program="woodfrog docker",
        ),
        Command(
            "uninstall",
            "",
            "Take it away from docker's client again.",
            ("woodfrog docker uninstall", "woodfrog docker uninstall --yes"),
            (PLUGIN_DIR, *ASKING),
            _uninstall,
            least=0,
            most=0,
            program="woodfrog docker",
        ),
    )
}

COMMAND = Command(
    "docker",
    "COMMAND …",
    "What `docker woodfrog` does, for which `woodfrog docker install` makes it known to docker's\n"
    "client. `woodfrog docker help` lists the commands.",
    ("woodfrog docker install", "woodfrog docker help restore"),
    (),
    run,
    least=0,
    most=None,
    greedy_after=0,
)
