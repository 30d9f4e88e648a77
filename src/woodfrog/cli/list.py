"""woodfrog list"""

from __future__ import annotations

import os
import sys

from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.runtime.state import Container, all_containers


def run(arguments: Arguments) -> None:
    """List the containers."""
    containers = all_containers(arguments.common.root)
    if arguments["quiet"]:
        sys.stdout.write("".join(f"{container.id}\n" for container in containers))
        return
    reports = [_report(container) for container in containers]
    if arguments["format"] == "json":
        from woodfrog.runtime import jsontext

        sys.stdout.write(jsontext.write(reports or None) + "\n")
        return
    rows = [("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")]
    for report in reports:
        names = ("id", "pid", "status", "bundle", "created", "owner")
        rows.append(tuple(str(report[name]) for name in names))  # type: ignore[arg-type]
    widths = [max(12, *(len(row[column]) + 3 for row in rows)) for column in range(5)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        sys.stdout.write("".join(cells) + row[5] + "\n")


def _report(container: Container) -> dict[str, object]:
    report = container.report()
    uid = os.stat(container.directory).st_uid
    report["owner"] = "root" if uid == 0 else f"#{uid}"
    return report


COMMAND = Command(
    "list",
    "",
    "List the containers that woodfrog knows.",
    ("woodfrog list", "woodfrog list --quiet | xargs -n1 woodfrog delete --force"),
    (
        Flag(
            "format", "how", short="f", value="FORMAT", default="table", choices=("table", "json")
        ),
        Flag("quiet", "only the ids", short="q"),
    ),
    run,
    least=0,
    most=0,
)
