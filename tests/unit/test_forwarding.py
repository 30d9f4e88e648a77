"""Command lines that are forwarded to a keeper before they are read properly."""

import pytest

from woodfrog.cli import checkpoint, flags, main, restore, rollback
from woodfrog.cli.forwarding import FLAGS, GLOBAL_FLAGS, _read

COMMANDS = {
    "checkpoint": checkpoint.COMMAND,
    "rollback": rollback.COMMAND,
    "restore": restore.COMMAND,
}
LINES = (
    "rollback --image-path=/a one",
    "rollback one --image-path /a --stats",
    "--root /r rollback --image-path /a --parent=x --parent y one",
    "--root=/r --log-format json --debug checkpoint -leave-running --image-path= one",
    "--log /l --root=/a -root /b checkpoint --compression zstd one --sync none --pre-dump",
    "--root r rollback --file-validation size --image-path two one",
    "--debug=false checkpoint --stats=true one",
    "restore --detach --template=t -b /b one",
    "--root=/r restore one -d --template a --template t --bundle=/b",
    "--log /l restore -template t-1 --count=3 -b /b many",
)
LEFT = (
    "",
    "rollback",
    "rollback --image-path",
    "rollback --image-path=/a",
    "rollback one two",
    "rollback a/b",
    "rollback -- one",
    "rollback - one",
    "rollback --help one",
    "rollback --unknown one",
    "--root= rollback one",
    "--root",
    "--compression=zstd checkpoint one",
    "--help checkpoint one",
    "checkpoint --status-fd=5 one",
    "checkpoint --dry-run one",
    "state rollback",
    "help rollback",
    "exec rollback checkpoint",
    "restore --template=t -b /b attached",
    "restore --detach --image-path=/i one",
    "restore --detach one",
    "restore --detach --template=t --pid-file=/p one",
    "restore --detach --template=../t one",
    "restore --detach one --template",
    "restore --detach=false --template=t one",
)


@pytest.mark.parametrize("line", LINES)
def test_what_is_read_is_what_the_whole_parser_reads(line: str) -> None:
    own = flags.parse(line.split(), main._global_flags(), who="help", greedy_after=0)
    name, *rest = own.rest
    found = flags.parse(rest, COMMANDS[name].flags, who=name)
    template = found["template"] if name == "restore" else ""
    assert _read(line.split(), main.DEFAULT_ROOT) == (own["root"], *found.rest, template)
    if name == "restore":
        assert found["detach"] or found["count"]


@pytest.mark.parametrize("line", LEFT)
def test_what_is_not_understood_is_left_to_the_whole_parser(line: str) -> None:
    assert _read(line.split(), main.DEFAULT_ROOT) is None


def test_the_flags_are_those_of_the_commands() -> None:
    of_commands = {name: command.flags for name, command in COMMANDS.items()}
    known = FLAGS | {"before": GLOBAL_FLAGS}
    for name, proper in (of_commands | {"before": main._global_flags()}).items():
        takes_value = {flag.name: bool(flag.value) for flag in proper if not flag.refused}
        takes_value |= {flag.short: bool(flag.value) for flag in proper if flag.short}
        assert known[name].items() <= takes_value.items()
