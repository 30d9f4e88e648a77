"""woodfrog ps"""

from __future__ import annotations

import os
import sys
import time

from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.loading import found
from woodfrog.errors import WoodfrogError


def run(arguments: Arguments) -> int:
    """List the processes of a container."""
    from woodfrog.runtime import cgroups, jsontext

    container = found(arguments)
    container.require("ps")
    pids = cgroups.processes(container.state["cgroup"])
    if arguments["format"] == "json":
        sys.stdout.write(jsontext.write(pids) + "\n")
        return 0
    if options := arguments.rest[1:]:
        return _by_ps(options, pids)
    sys.stdout.write("UID        PID  PPID STIME    TIME CMD\n")
    for pid in pids:
        if row := _row(pid):
            sys.stdout.write(row + "\n")
    return 0


def _row(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            name, _, rest = file.readall().partition(b"(")[2].rpartition(b")")
        with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
            command = file.readall().rstrip(b"\0").replace(b"\0", b" ")
        uid = os.stat(f"/proc/{pid}").st_uid
    except (FileNotFoundError, ProcessLookupError):
        return ""
    fields = rest.split()
    ticks = os.sysconf("SC_CLK_TCK")
    used = (int(fields[11]) + int(fields[12])) // ticks
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / ticks
    since = time.strftime("%H:%M", time.localtime(time.time() - age))
    clock = f"{used // 3600:02d}:{used // 60 % 60:02d}:{used % 60:02d}"
    text = os.fsdecode(command or b"[" + name + b"]")
    return f"{uid:<8} {pid:>5} {int(fields[1]):>5} {since} {clock} {text}"


def _by_ps(options: list[str], pids: list[int]) -> int:
    """Show what the host's ps says with its own options, and of that only our processes."""
    import subprocess

    try:
        done = subprocess.run(["ps", *options], stdout=subprocess.PIPE, check=False)
    except FileNotFoundError:
        raise WoodfrogError("there is no ps on this host", hint="leave its options out") from None
    header, *lines = done.stdout.decode(errors="replace").splitlines() or [""]
    try:
        column = header.split().index("PID")
    except ValueError:
        raise WoodfrogError(
            "these ps options show no PID column", hint="add one: -o pid,…"
        ) from None
    sys.stdout.write(header + "\n")
    for line in lines:
        cells = line.split()
        if len(cells) > column and cells[column].isdigit() and int(cells[column]) in pids:
            sys.stdout.write(line + "\n")
    return done.returncode


COMMAND = Command(
    "ps",
    "ID [PS OPTIONS]",
    "List the processes of a container, by their host pids; with options of ps, as ps shows them.",
    ("woodfrog ps web", "woodfrog ps --format json web"),
    (Flag("format", "how", short="f", value="FORMAT", default="table", choices=("table", "json")),),
    run,
    most=None,
    greedy_after=1,
    loose=True,
)
