"""README's table of open files is made from the kinds: none is kept or refused in silence."""

import os
import re
from pathlib import Path

import pytest

from woodfrog.resources import catalogue, files
from woodfrog.resources.files import refused
from woodfrog.resources.files.base import FileRecord, Row

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN = "<!-- This table is made from src/woodfrog/resources/files; a test compares them. -->\n"
END = "<!-- Until here. -->\n"


def rows() -> list[Row]:
    """Return each kind's row; several kinds may be one thing for people, and share theirs."""
    return list(dict.fromkeys(kind.row for kind in catalogue.file_kinds()))


def table() -> str:
    """Return the table as the kinds would have it."""
    lines = ["| open files | kept | refused |", "|---|---|---|"]
    for row in rows():
        lines.append(f"| {row.called} | {'; '.join(row.kept)} | {'; '.join(row.refused)} |")
    others = ", ".join(refused.names())
    lines.append(f"| all others | | {others}; other devices and sockets |")
    return BEGIN + "\n" + "\n".join(lines) + "\n\n" + END


def test_the_readme_shows_the_table() -> None:
    text = README.read_text()
    begin, end = text.index(BEGIN), text.index(END) + len(END)
    if os.environ.get("WOODFROG_WRITE_SAMPLES") == "1":
        README.write_text(text[:begin] + table() + text[end:])
        return
    assert text[begin:end] == table(), "WOODFROG_WRITE_SAMPLES=1 writes it anew"


@pytest.mark.parametrize("kind", catalogue.file_kinds(), ids=lambda kind: kind.__name__)
def test_a_kind_that_refuses_something_says_so(kind: type[FileRecord]) -> None:
    assert kind.row.called
    assert kind.row.kept
    module = Path(files.__path__[0]) / f"{kind.__module__.rpartition('.')[2]}.py"
    collecting = re.search(
        r"    def collect\(.*?(?=\n    def |\n    @|\Z)", module.read_text(), re.DOTALL
    )
    assert collecting
    if "raise UnsupportedResource" in collecting[0] or "_is_covered" in collecting[0]:
        assert kind.row.refused
