"""woodfrog exec"""

from __future__ import annotations

from woodfrog.cli import creating
from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.loading import found
from woodfrog.cli.report import Debugger, failure, warner
from woodfrog.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def run(arguments: Arguments) -> int:
    """Run a process in a container."""
    try:
        return _run(arguments)
    except Exception as error:
        # Any small number could be the program's own exit status; runc gives 255, too.
        failure(error, arguments.common)
        return 255


def _run(arguments: Arguments) -> int:
    from woodfrog.runtime import exec as execs
    from woodfrog.runtime import lifecycle

    debug = Debugger(arguments.common)
    container = found(arguments)
    config = lifecycle.config_of(container)
    if arguments["process"]:
        from woodfrog.runtime import spec

        process, warnings = spec.read_process(arguments["process"])
        for warning in warnings:
            warner(arguments.common)(warning)
    else:
        process = _process(arguments, config["process"])
    execs.inherit(process, config["process"])
    if arguments["process_label"] or arguments["apparmor"]:
        from woodfrog.runtime import labels

        for warning in labels.warnings(process, {}):
            warner(arguments.common)(warning)
    request = execs.Request(process, config)
    request.debug, request.debug_descriptor = debug, debug.descriptor
    request.detach = arguments["detach"]
    request.console_socket = arguments["console_socket"] or ""
    request.pid_file = arguments["pid_file"] or ""
    request.pidfd_socket = arguments["pidfd_socket"] or ""
    request.preserve_fds = arguments["preserve_fds"]
    creating.check_descriptors(0, request.preserve_fds)
    request.ignore_paused = arguments["ignore_paused"]
    request.cgroups = arguments["cgroup"]
    if seccomp := (config.get("linux") or {}).get("seccomp"):
        from woodfrog.runtime.seccomp import compile

        request.seccomp = compile(seccomp)
    return execs.run(container, request)


def _process(arguments: Arguments, base: dict[str, Any]) -> dict[str, Any]:
    """Return the container's own process object with what the flags change."""
    words = arguments.rest[1:]
    if not words:
        raise UsageError("exec: the command is missing", hint="usage: woodfrog exec ID COMMAND")
    process = dict(base)
    process["args"] = words
    process["terminal"] = arguments["tty"]
    process["env"] = [*(base.get("env") or []), *arguments["env"]]
    process["cwd"] = arguments["cwd"] or base.get("cwd") or "/"
    if arguments["process_label"]:
        process["selinuxLabel"] = arguments["process_label"]
    if arguments["apparmor"]:
        process["apparmorProfile"] = arguments["apparmor"]
    if "no_new_privs" in arguments.given:
        process["noNewPrivileges"] = arguments["no_new_privs"]
    user = dict(base.get("user") or {})
    if arguments["user"]:
        uid, colon, gid = arguments["user"].partition(":")
        if not uid.isdigit() or (colon and not gid.isdigit()):
            raise UsageError(f"--user takes UID or UID:GID, not {arguments['user']!r}")
        user["uid"] = int(uid)
        if colon:
            user["gid"] = int(gid)
    if arguments["additional_gids"]:
        gids = [*(user.get("additionalGids") or []), *arguments["additional_gids"]]
        user["additionalGids"] = gids
    process["user"] = user
    if arguments["cap"]:
        sets = dict(process.get("capabilities") or {})
        # Ambient ones must be inheritable: they come where the container has such.
        ambient = ["ambient"] if sets.get("inheritable") else []
        for kind in ("bounding", "effective", "permitted", *ambient):
            sets[kind] = [*(sets.get(kind) or []), *arguments["cap"]]
        process["capabilities"] = sets
    return process


COMMAND = Command(
    "exec",
    "ID COMMAND [ARGUMENTS]",
    "Run another process in a running container, with the rights and environment of its first\n"
    "one unless told otherwise. In the foreground its exit status comes back.",
    ("woodfrog exec web ls -l /srv", "woodfrog exec --tty --env TERM=xterm web sh"),
    (
        Flag("process", "run what this JSON file says", short="p", value="FILE"),
        Flag("detach", "don't wait for its end", short="d"),
        Flag("tty", "give it a terminal", short="t"),
        Flag("console-socket", "hand the terminal to the unix socket at this path", value="PATH"),
        Flag("pid-file", "write its pid to this file", value="FILE"),
        Flag("cwd", "the working directory", value="DIR"),
        Flag(
            "env", "set a variable (repeat it for more)", short="e", value="NAME=VALUE", many=True
        ),
        Flag("user", "run as this user", short="u", value="UID[:GID]"),
        Flag(
            "additional-gids",
            "a group more (repeat it for more)",
            short="g",
            value="GID",
            many=True,
            number=True,
        ),
        Flag("cap", "a capability more (repeat it for more)", short="c", value="NAME", many=True),
        Flag("no-new-privs", "it can gain no rights by exec"),
        Flag(
            "preserve-fds",
            "pass on so many descriptors from 3 up",
            value="N",
            number=True,
            default=0,
        ),
        Flag("ignore-paused", "go ahead in a paused container: it runs when that is resumed"),
        Flag("process-label", "run it under this SELinux label", value="LABEL"),
        Flag("apparmor", "run it under this AppArmor profile", value="PROFILE"),
        Flag(
            "cgroup",
            "join this group inside the container's own (repeat it for more controllers)",
            value="[CONTROLLER[,…]:]PATH",
            many=True,
        ),
        Flag("pidfd-socket", "hand a pidfd to the unix socket at this path", value="PATH"),
    ),
    run,
    most=None,
    greedy_after=1,
)
