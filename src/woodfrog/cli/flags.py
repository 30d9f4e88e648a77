"""Command lines: flags as tables, that parse what engines and people type and print the help."""

from __future__ import annotations

from woodfrog.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any


class Flag:
    """One flag: `--name` (`-name`, and perhaps one letter), what it takes and what it is for."""

    title = "flags:"  # what it stands under in the help

    def __init__(
        self,
        name: str,
        help: str,
        *,
        short: str = "",
        value: str = "",
        default: Any = None,
        many: bool = False,
        number: bool = False,
        seconds: bool = False,
        choices: tuple[str, ...] = (),
        refused: str = "",
    ) -> None:
        self.name = name
        self.help = help
        self.short = short
        self.value = value  # the word for its value in the help; empty for a switch
        self.many = many
        self.number = number
        self.seconds = seconds  # a time, like 90, 90s or 10m
        self.choices = choices
        self.refused = refused  # why it can't be given
        self.default: Any = [] if many else default if value else bool(default)
        self.key = name.replace("-", "_")

    def read(self, text: str, where: str) -> Any:
        """Return the value that a text means; an error names where it stands."""
        if self.refused:
            raise UsageError(f"{where} is not supported: {self.refused}")
        taken: Any = text
        if not self.value:
            if text not in _TRUE:
                raise UsageError(f"{where} is a switch: it takes true or false, not {text!r}")
            taken = _TRUE[text]
        elif self.number:
            try:
                taken = int(text)
            except ValueError:
                raise UsageError(f"{where} takes a number, not {text!r}") from None
        elif self.seconds:
            taken = _seconds(text, where)
        if self.choices and taken not in self.choices:
            raise UsageError(f"{where} takes one of {', '.join(self.choices)}, not {text!r}")
        return taken


class Command:
    """One command: its arguments, flags, help and what it runs."""

    def __init__(
        self,
        name: str,
        arguments: str,
        about: str,
        examples: tuple[str, ...],
        flags: tuple[Flag, ...],
        run: Callable[[Arguments], int | None],
        *,
        least: int = 1,
        most: int | None = 1,
        greedy_after: int | None = None,
        loose: bool = False,
        program: str = "woodfrog",
    ) -> None:
        self.program = program
        self.name = name
        self.arguments = arguments
        self.about = about
        self.examples = examples
        self.flags = flags
        self.run = run
        self.least = least
        self.most = most
        # After so many arguments all that follows belongs to a command line that isn't ours.
        self.greedy_after = greedy_after
        self.loose = loose  # ... and unknown flags do, too


class Arguments:
    """What was typed, by the flags' names; `rest` holds the arguments."""

    def __init__(self, command: str, flags: tuple[Flag, ...]) -> None:
        self.command = command
        self.values: dict[str, Any] = {
            flag.key: list(flag.default) if flag.many else flag.default for flag in flags
        }
        self.given: set[str] = set()
        self.rest: list[str] = []
        self.common: Common = Common()

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


class Common:
    """The global options."""

    def __init__(self) -> None:
        self.root = ""
        self.log = ""
        self.log_format = "text"
        self.debug = False
        self.systemd_cgroup = False
        self.config = ""  # the file of policies, if another than the usual one
        self.policies: dict[str, Any] = {}  # those that stand before the command
        self.words: list[str] = []  # the whole command line
        self.asked = "0"  # whether another process has been asked to do it: see cli/keeper.py

    def recorded(self) -> dict[str, Any]:
        """Return what later commands on the same container needn't be told again."""
        return {"log": self.log, "logFormat": self.log_format, "debug": self.debug}


def _seconds(text: str, where: str) -> int:
    """Return a time that is written as Go programs write it, in whole seconds and at least one."""
    units = {"s": 1, "m": 60, "h": 3600}
    total, digits = 0, ""
    for letter in text if text[-1:] in units else text + "s":
        if letter.isdecimal():
            digits += letter
        elif letter in units and digits:
            total, digits = total + int(digits) * units[letter], ""
        else:
            total = 0
            break
    if not total:
        raise UsageError(f"{where} takes a time like 90s or 10m, not {text!r}")
    return total


_TRUE = {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}


def parse(
    words: list[str],
    flags: tuple[Flag, ...],
    *,
    who: str,
    greedy_after: int | None = None,
    loose: bool = False,
    rarer: Callable[[], tuple[Flag, ...]] = tuple,
) -> Arguments:
    """Return what the words say; flags and arguments may be mixed, up to a "--".

    `rarer` gives the flags that are looked at only for a word that is none of `flags`.
    """
    found = Arguments(who, flags)
    by_name = {flag.name: flag for flag in flags} | {f.short: f for f in flags if f.short}
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--":
            found.rest += words[position + 1 :]
            break
        if not word.startswith("-") or word == "-":
            if greedy_after is not None and len(found.rest) >= greedy_after:
                found.rest += words[position:]
                break
            found.rest.append(word)
            position += 1
            continue
        name, equals, value = word.lstrip("-").partition("=")
        flag = by_name.get(name) or next((f for f in rarer() if f.name == name), None)
        if flag is None:
            if loose and found.rest:
                found.rest += words[position:]
                break
            known = _spelled((*flags, *rarer()))
            raise unknown("flag", word.partition("=")[0], known, f"woodfrog {who} --help")
        position += 1
        if flag.value and not equals:
            if position >= len(words):
                # Podman looks for these words of runc's to learn that a flag is known.
                raise UsageError(f"flag needs an argument: --{flag.name}={flag.value}")
            value = words[position]
            position += 1
        taken = flag.read(value if flag.value or equals else "true", f"--{flag.name}")
        found.given.add(flag.key)
        if flag.many:
            found.values.setdefault(flag.key, []).append(taken)
        else:
            found.values[flag.key] = taken
    return found


def _spelled(flags: tuple[Flag, ...]) -> list[str]:
    return [f"--{flag.name}" for flag in flags if not flag.refused]


def unknown(kind: str, word: str, known: list[str], help_of: str) -> UsageError:
    """Return the error for a word nobody knows, with the one that was meant, perhaps."""
    asked = "--" + word.lstrip("-") if kind == "flag" else word
    return UsageError(f"unknown {kind} {word}", hint=guess(asked, known, help_of))


def guess(word: str, known: list[str], help_of: str, prefix: str = "") -> str:
    """Return a hint: which of the known words was meant, perhaps, or who lists them."""
    from difflib import get_close_matches

    near = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {prefix}{near[0]}?" if near else f"`{help_of}` lists them all"


def check_count(command: Command, rest: list[str]) -> None:
    """Raise UsageError if there are too few or too many arguments."""
    usage = f"usage: {command.program} {command.name} [flags] {command.arguments}"
    if len(rest) < command.least:
        raise UsageError(f"{command.name}: an argument is missing", hint=usage)
    if command.most is not None and len(rest) > command.most:
        raise UsageError(f"{command.name}: too many arguments: {' '.join(rest)}", hint=usage)


def help_text(command: Command) -> str:
    """Return the help of one command."""
    flags = " [flags]" if command.flags else ""
    lines = [f"usage: {command.program} {command.name}{flags} {command.arguments}".rstrip(), ""]
    lines += [command.about, ""]
    for title in dict.fromkeys(flag.title for flag in command.flags):
        lines += [title, *flag_lines([f for f in command.flags if f.title == title]), ""]
    lines += ["examples:", *(f"  {example}" for example in command.examples)]
    return "\n".join(lines) + "\n"


def flag_lines(flags: Sequence[Flag]) -> list[str]:
    """Return the flags as lines of help, with their defaults."""
    rows = []
    for flag in flags:
        left = f"-{flag.short}, " if flag.short else "    "
        left += f"--{flag.name}" + (f"={flag.value}" if flag.value else "")
        text = flag.help
        if flag.choices:
            text += f" ({', '.join(flag.choices)})"
        if flag.refused:
            text = f"not supported: {flag.refused}"
        elif flag.default not in (None, [], "", False):
            text += f" (default {flag.default})"
        rows.append((left, text))
    from textwrap import wrap

    width = max(len(left) for left, _ in rows)
    lines = []
    for left, text in rows:
        first, *more = wrap(text, 96 - width)
        lines.append(f"  {left.ljust(width)}  {first}")
        lines += [" " * (width + 4) + line for line in more]
    return lines
