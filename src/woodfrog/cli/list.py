"""woodfrog list"""

from __future__ import annotations

import os
import sys

from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.runtime.state import Container, all_containers


def run(arguments: Arguments) -> None:
    """List the containers."""
    containers = all_containers(arguments.common.root)
    if arguments["helpers"]:
        _show_helpers(containers, as_json=arguments["format"] == "json")
        return
    if arguments["quiet"]:
        sys.stdout.write("".join(f"{container.id}\n" for container in containers))
        return
    reports = [report for container in containers if (report := _report(container))]
    if arguments["format"] == "json":
        from woodfrog.runtime import jsontext

        sys.stdout.write(jsontext.write(reports or None) + "\n")
        return
    write_table(("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"), reports)


def _show_helpers(containers: list[Container], *, as_json: bool) -> None:
    """List the processes of ours that stay beside containers."""
    helpers: list[dict[str, object]] = [
        {"container": container.id, "pid": pid, "purpose": purpose}
        for container in containers
        for pid, purpose in container.helpers()
    ]
    if as_json:
        from woodfrog.runtime import jsontext

        sys.stdout.write(jsontext.write(helpers or None) + "\n")
        return
    write_table(("CONTAINER", "PID", "PURPOSE"), helpers)


def write_table(titles: tuple[str, ...], reports: list[dict[str, object]]) -> None:
    """Write a line for each report, with what it has under each title."""
    rows = [titles]
    rows += [tuple(str(report[title.lower()]) for title in titles) for report in reports]
    widths = [max(12, *(len(row[at]) + 3 for row in rows)) for at in range(len(titles) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        sys.stdout.write("".join(cells) + row[-1] + "\n")


def _report(container: Container) -> dict[str, object] | None:
    """Return what is shown of a container, or None if somebody has deleted it meanwhile."""
    try:
        uid = os.stat(container.directory).st_uid
    except FileNotFoundError:
        return None
    report = container.report()
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
        Flag("helpers", "the processes of woodfrog's own that stay beside containers, instead"),
    ),
    run,
    least=0,
    most=0,
)
