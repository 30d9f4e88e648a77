"""The options of `docker create`, told apart from the image and the command after them."""

from __future__ import annotations

import re
from dataclasses import dataclass

# "  -a, --attach list   Attach to …": a letter, a name, and a word if it takes a value.
_HELP = re.compile(r"^ +(?:-(\w), )?--([\w-]+)(?:[ =](\S+))?(?:  |$)", re.MULTILINE)


@dataclass(frozen=True)
class Option:
    """One option as it was typed, with the long names of what it says."""

    words: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def value(self) -> str:
        """Return what was given with a long name."""
        return self.words[1] if len(self.words) == 2 else self.words[0].partition("=")[2]


@dataclass(frozen=True)
class Given:
    """What was typed: options, and then image and command."""

    options: list[Option]
    arguments: list[str]

    def has(self, name: str) -> bool:
        """Tell whether an option was given."""
        return any(name in option.names for option in self.options)

    def take(self, name: str) -> list[str]:
        """Take an option out; returns its values."""
        taken = [option for option in self.options if option.names == (name,)]
        self.options[:] = [option for option in self.options if option not in taken]
        return [option.value for option in taken]

    def words(self) -> list[str]:
        """Return the options as they were typed."""
        return [word for option in self.options for word in option.words]


def split(words: list[str], help: str) -> Given:
    """Tell options from what follows them, by the text of a help."""
    takes_value: dict[str, bool] = {}
    long_names: dict[str, str] = {}
    for letter, name, value in _HELP.findall(help):
        takes_value[name] = bool(value)
        if letter:
            long_names[letter] = name
    found: list[Option] = []
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, _ = word[2:].partition("=")
            names, more = [name], takes_value.get(name, False) and not equals
        else:
            names, more = _letters(word[1:], long_names, takes_value)
        value_words = [rest.pop(0)] if more and rest else []
        found.append(Option((word, *value_words), tuple(names)))
    return Given(found, rest)


def _letters(
    cluster: str, long_names: dict[str, str], takes_value: dict[str, bool]
) -> tuple[list[str], bool]:
    """Return what a word like `-itp80:80` says, and whether its value is the next word."""
    names: list[str] = []
    for at, letter in enumerate(cluster, 1):
        names.append(long_names.get(letter, letter))
        if takes_value.get(names[-1]):
            return names, at == len(cluster)
        if cluster[at:].startswith("="):
            break
    return names, False
