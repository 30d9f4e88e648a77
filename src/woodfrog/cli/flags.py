"""Command lines: flags as tables, that parse what engines and people type and print the help."""

from __future__ import annotations

from woodfrog.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Flag:
    """One flag: `--name` (`-name`, and perhaps one letter), what it takes and what it is for."""

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
        choices: tuple[str, ...] = (),
        refused: str = "",
    ) -> None:
        self.name = name
        self.help = help
        self.short = short
        self.value = value  # the word for its value in the help; empty for a switch
        self.many = many
        self.number = number
        self.choices = choices
        self.refused = refused  # why it can't be given
        self.default: Any = [] if many else default if value else bool(default)
        self.key = name.replace("-", "_")


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
    ) -> None:
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

    def __init__(self, flags: tuple[Flag, ...]) -> None:
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

    def recorded(self) -> dict[str, Any]:
        """Return what later commands on the same container needn't be told again."""
        return {"log": self.log, "logFormat": self.log_format, "debug": self.debug}


_TRUE = {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}


def parse(
    words: list[str],
    flags: tuple[Flag, ...],
    *,
    who: str,
    greedy_after: int | None = None,
    loose: bool = False,
) -> Arguments:
    """Return what the words say; flags and arguments may be mixed, up to a "--"."""
    found = Arguments(flags)
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
        flag = by_name.get(name)
        if flag is None:
            if loose and found.rest:
                found.rest += words[position:]
                break
            raise unknown("flag", word.partition("=")[0], _spelled(flags), f"woodfrog {who}")
        position += 1
        if flag.refused:
            raise UsageError(f"--{flag.name} is not supported: {flag.refused}")
        if flag.value and not equals:
            if position >= len(words):
                raise UsageError(f"--{flag.name} needs a value ({flag.value})")
            value = words[position]
            position += 1
        found.given.add(flag.key)
        _take(found, flag, value, bool(equals))
    return found


def _take(found: Arguments, flag: Flag, value: str, has_value: bool) -> None:
    taken: Any = value
    if not flag.value:
        if has_value and value not in _TRUE:
            raise UsageError(f"--{flag.name} is a switch: it takes true or false, not {value!r}")
        taken = _TRUE[value] if has_value else True
    elif flag.number:
        try:
            taken = int(value)
        except ValueError:
            raise UsageError(f"--{flag.name} takes a number, not {value!r}") from None
    if flag.choices and taken not in flag.choices:
        raise UsageError(f"--{flag.name} takes one of {', '.join(flag.choices)}, not {value!r}")
    if flag.many:
        found.values[flag.key].append(taken)
    else:
        found.values[flag.key] = taken


def _spelled(flags: tuple[Flag, ...]) -> list[str]:
    return [f"--{flag.name}" for flag in flags if not flag.refused]


def unknown(kind: str, word: str, known: list[str], help_of: str) -> UsageError:
    """Return the error for a word nobody knows, with the one that was meant, perhaps."""
    from difflib import get_close_matches

    asked = "--" + word.lstrip("-") if kind == "flag" else word
    near = get_close_matches(asked, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"`{help_of} --help` lists them all"
    return UsageError(f"unknown {kind} {word}", hint=hint)


def help_text(command: Command) -> str:
    """Return the help of one command."""
    flags = " [flags]" if command.flags else ""
    lines = [f"usage: woodfrog {command.name}{flags} {command.arguments}".rstrip(), ""]
    lines += [command.about, ""]
    if command.flags:
        lines += ["flags:", *flag_lines(command.flags), ""]
    lines += ["examples:", *(f"  {example}" for example in command.examples)]
    return "\n".join(lines) + "\n"


def flag_lines(flags: tuple[Flag, ...]) -> list[str]:
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
        elif not flag.value:
            text += " (default false)"
        rows.append((left, text))
    from textwrap import wrap

    width = max(len(left) for left, _ in rows)
    lines = []
    for left, text in rows:
        first, *more = wrap(text, 96 - width)
        lines.append(f"  {left.ljust(width)}  {first}")
        lines += [" " * (width + 4) + line for line in more]
    return lines
