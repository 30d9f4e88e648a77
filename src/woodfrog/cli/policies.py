"""Policies: what people may wish of a checkpoint or restore, wherever they say it.

Engines pass no options of their own. So a policy may stand as a flag of the command, as an
annotation of the bundle, before the command, or in a file; the nearest wins, in this order.
"""

from __future__ import annotations

from woodfrog.cli.flags import Flag, guess
from woodfrog.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from woodfrog.cli.flags import Arguments

PREFIX = "org.woodfrog."
CONFIG_FILE = "/etc/woodfrog/config.toml"

# An annotation of runc's that names a file with options of CRIU's; those that we understand.
CRIU_FILE = "org.criu.config"
CRIU_NAMES = (
    "tcp-close",
    "tcp-established",
    "skip-in-flight",
    "ext-unix-sk",
    "file-locks",
    "link-remap",
    "ghost-limit",
    "shell-job",
    "empty-ns",
    "auto-dedup",
)

# Annotations of gVisor's that we understand, too.
GVISORS = "dev.gvisor.internal.checkpoint."
GVISOR_NAMES = (
    "compression",
    "direct",
    "exclude-committed-zero-pages",
    "cuda-checkpoint-sequential",
    "save-restore-exec-argv",
    "save-restore-exec-timeout",
)

NO_EFFECT = "no effect: "


class Policy(Flag):
    """A flag of these commands that may be said elsewhere, too.

    One that names a file or program of the host is `private`: no annotation can give it, since
    who writes annotations need not be who owns the host.
    """

    title = "policies (`woodfrog help policies` says where else they may stand):"

    def __init__(
        self, name: str, help: str, *commands: str, private: bool = False, **how: Any
    ) -> None:
        super().__init__(name, help, **how)
        self.commands = commands
        self.private = private


# Each policy there is, in the order of the help. docs/policies.md is made from this table.
POLICIES = (
    Policy(
        "tcp-close",
        "give up TCP connections to outside: restored, they are reset",
        "checkpoint",
        "restore",
        "rollback",
    ),
    Policy(
        "ext-unix-close",
        "give up unix connections to outside; restored, the other side has closed them"
        " (the checkpoint decides)",
        "checkpoint",
        "restore",
    ),
    Policy("ext-unix-sk", "CRIU's name for --ext-unix-close", "checkpoint", "restore"),
    Policy(
        "with-rootfs",
        "store what has changed in the root file system, an overlay; a restore brings it along",
        "checkpoint",
    ),
    Policy(
        "compression",
        "of the memory in the image",
        "checkpoint",
        value="KIND",
        default="none",
        choices=("none", "flate-best-speed", "zstd"),
    ),
    Policy(
        "sync",
        "full: the image is on the disk before the container stops",
        "checkpoint",
        value="HOW",
        default="full",
        choices=("full", "none"),
    ),
    Policy(
        "clock",
        "which monotonic clock it sees: its own, going on, or this host's",
        "restore",
        value="WHICH",
        default="container",
        choices=("container", "host"),
    ),
    Policy(
        "cpu-check",
        "what this CPU must have: all that the container's had (strict), the registers that are in"
        " use, or nothing",
        "restore",
        value="HOW",
        default="strict",
        choices=("strict", "used", "none"),
    ),
    Policy(
        "restore-spec-validation",
        "what the new container's config may not have otherwise than the old one's: refuse it,"
        " warn of it, or don't look. Unless given, what would break is refused, and the rest"
        " warned of",
        "restore",
        value="HOW",
        choices=("enforce", "warning", "ignore"),
    ),
    Policy(
        "file-validation",
        "what of the container's own files must be as at the checkpoint: their size, for programs"
        " and libraries also their build, or nothing",
        "restore",
        "rollback",
        value="HOW",
        default="build-id",
        choices=("build-id", "size", "none"),
    ),
    Policy(
        "tcp-established",
        "keep TCP connections to outside, for a container with the same address; take them over",
        "checkpoint",
        "restore",
    ),
    Policy(
        "tcp-listen-only",
        "keep TCP listeners without what waits there: like --tcp-close, and connections that nobody"
        " has accepted are given up, too, also those from inside; restored, their ends are reset",
        "checkpoint",
        "restore",
    ),
    Policy(
        "cuda-checkpoint-path",
        "NVIDIA's program cuda-checkpoint: it takes what is in GPUs into the memory of the"
        " processes that use them, and puts it back",
        "checkpoint",
        "restore",
        value="PROGRAM",
        private=True,
    ),
    Policy(
        "cuda-checkpoint-sequential",
        "... for one process after the other",
        "checkpoint",
        "restore",
    ),
    Policy(
        "save-restore-exec-argv",
        "a command that is run in the container before it is frozen and when it goes on, with"
        " GVISOR_SAVE_RESTORE_AUTO_EXEC_MODE=save, restore or resume",
        "checkpoint",
        "restore",
        value="COMMAND",
    ),
    Policy(
        "save-restore-exec-timeout",
        "how long that may take",
        "checkpoint",
        "restore",
        value="TIME",
        default=600,
        seconds=True,
    ),
    Policy(
        "background",
        "let the container run before all of its memory is there; the image must stay until"
        " `woodfrog wait --restore ID` returns",
        "restore",
    ),
    Policy(
        "track-changes",
        "have the kernel note what is written to from now on: a checkpoint with this image as"
        " --parent then takes little time, and so does a rollback to it. A process of ours stays"
        " meanwhile, and does the next commands",
        "checkpoint",
        "restore",
    ),
    Policy(
        "tcp-skip-in-flight",
        "give up TCP connections that nobody has accepted: restored, a listener is without them",
        "checkpoint",
    ),
    Policy("skip-in-flight", "CRIU's name for --tcp-skip-in-flight", "checkpoint"),
    Policy(
        "direct",
        "write and read pages past the page cache (O_DIRECT), if uncompressed",
        "checkpoint",
        "restore",
    ),
    Policy(
        "exclude-committed-zero-pages",
        NO_EFFECT + "pages that were never written to are never in an image; others are kept",
        "checkpoint",
    ),
    Policy(
        "manage-cgroups-mode",
        NO_EFFECT + "the cgroup is always made from the config",
        "checkpoint",
        "restore",
        value="MODE",
        choices=("soft", "full", "strict", "ignore"),
    ),
    Policy(
        "empty-ns",
        NO_EFFECT + "the network is always that of the new container's own config",
        "checkpoint",
        "restore",
        value="NAMESPACE",
        choices=("network",),
    ),
    Policy(
        "file-locks",
        NO_EFFECT + "locks are always kept, or refused by name",
        "checkpoint",
        "restore",
    ),
    Policy(
        "link-remap",
        NO_EFFECT + "what is kept of deleted files needs no links in the container",
        "checkpoint",
    ),
    Policy(
        "ghost-limit",
        NO_EFFECT + "deleted files are kept whatever their size, or refused by name",
        "checkpoint",
        value="SIZE",
    ),
    Policy(
        "shell-job",
        NO_EFFECT + "the container's own terminal is always kept",
        "checkpoint",
        "restore",
    ),
    Policy(
        "auto-dedup",
        NO_EFFECT + "an image holds no page twice",
        "checkpoint",
        "restore",
    ),
)


def of(command: str) -> tuple[Policy, ...]:
    """Return the policies of a command, to be listed among its flags."""
    return tuple(policy for policy in POLICIES if command in policy.commands)


def settle(arguments: Arguments, annotations: dict[str, str], command: str) -> None:
    """Give each policy of a command that is no flag here the value that stands nearest."""
    here = of(command)
    for values in (
        annotated(annotations),
        _of_criu(annotations),
        arguments.common.policies,
        _in_file(arguments.common.config),
    ):
        for policy in here:
            if policy.key in values and policy.key not in arguments.given:
                arguments.values[policy.key] = values[policy.key]
                arguments.given.add(policy.key)


def annotated(annotations: dict[str, str]) -> dict[str, Any]:
    """Return the values that annotations give, by the policies' keys; raises UsageError."""
    found = {}
    for name, text in annotations.items():
        if name.startswith(GVISORS) and name.removeprefix(GVISORS) in GVISOR_NAMES:
            policy = _named(name.removeprefix(GVISORS), "unknown annotation", GVISORS)
            found[policy.key] = policy.read(text, f"annotation {name}")
    for name, text in annotations.items():
        if not name.startswith(PREFIX):
            continue
        policy = _named(name.removeprefix(PREFIX), "unknown annotation", PREFIX)
        if policy.private:
            raise UsageError(
                f"annotation {name}: this policy names something of the host",
                hint=f"give it as a flag, or in {CONFIG_FILE}",
            )
        found[policy.key] = policy.read(text, f"annotation {name}")
    return found


def _of_criu(annotations: dict[str, str]) -> dict[str, Any]:
    """Return the values in a file of CRIU's own, as runc knows it; its other options are CRIU's."""
    if CRIU_FILE not in annotations:
        return {}
    from woodfrog.runtime.criu_files import configured

    found = {}
    for name, text in configured(annotations).items():
        for policy in POLICIES:
            if policy.name == name and name in CRIU_NAMES:
                found[policy.key] = policy.read(text or "true", f"{annotations[CRIU_FILE]}: {name}")
    return found


def _in_file(path: str) -> dict[str, Any]:
    """Return the values that a configuration file gives; the usual one need not be there."""
    try:
        with open(path or CONFIG_FILE, "rb") as file:
            import tomllib

            try:
                content = tomllib.load(file)
            except ValueError as error:
                raise UsageError(f"{file.name}: {error}") from None
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path:
            return {}
        raise UsageError(f"cannot read {error.filename}: {error.strerror}") from None
    found = {}
    for name, value in content.items():
        policy = _named(name, f"{file.name}: unknown policy")
        found[policy.key] = policy.read(_text(value), f"{file.name}: {name}")
    return found


def _text(value: Any) -> str:
    """Return a TOML value as it would be typed on a command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _named(name: str, what: str, prefix: str = "") -> Policy:
    for policy in POLICIES:
        if policy.name == name:
            return policy
    known = [policy.name for policy in POLICIES]
    hint = guess(name, known, "woodfrog help policies", prefix)
    raise UsageError(f"{what} {prefix}{name}", hint=hint)


def help_text() -> str:
    """Return what `woodfrog help policies` shows."""
    from woodfrog.cli.flags import flag_lines

    about = f"""\
What may be wished of a checkpoint or restore. Each policy may stand, the nearest first,

  as a flag of the command   woodfrog checkpoint --compression=zstd --image-path=DIR ID
  as an annotation           "annotations": {{"{PREFIX}compression": "zstd"}}
    of the bundle: for a checkpoint that of the container, for a restore that of the new one
  with CRIU's name, in a     tcp-established
    file of CRIU's that the annotation org.criu.config names
  before the command         woodfrog --compression=zstd checkpoint … (docker's runtimeArgs)
  in a file                  compression = "zstd" in {CONFIG_FILE} (or --config=FILE)

Switches are true or false. A name that nobody knows, or a value, is an error wherever it stands.
"""
    lines = [about]
    for commands in dict.fromkeys(policy.commands for policy in POLICIES):
        these = [policy for policy in POLICIES if policy.commands == commands]
        lines += [f"{' and '.join(commands)}:", *flag_lines(these), ""]
    return "\n".join(lines[:-1]) + "\n"
