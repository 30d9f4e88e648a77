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
    pids = cgroups.processes(container.state["cgroup"])
    if arguments["format"] == "json":
        sys.stdout.write(jsontext.write(pids) + "\n")
        return 0
    if options := arguments.rest[1:]:
        return _by_ps(options, pids)
    # As `ps -ef` shows them, without the time that it takes to start.
    sys.stdout.write("UID          PID    PPID  C STIME TTY          TIME CMD\n")
    users: dict[int, str] = {}
    for pid in pids:
        if row := _row(pid, users):
            sys.stdout.write(row + "\n")
    return 0


def _row(pid: int, users: dict[int, str]) -> str:
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
    began = time.localtime(time.time() - age)
    since = time.strftime("%H:%M" if age < 86400 else "%b%d", began)
    share = min(int(100 * used / age) if age > 0 else 0, 99)
    terminal = int(fields[4])
    # The numbers of the pseudo-terminals' major go on behind the minor's first eight bits.
    on = f"pts/{terminal & 0xFF | terminal >> 12 & 0xFFF00}" if terminal >> 8 & 0xFF == 136 else "?"
    clock = f"{used // 3600:02d}:{used // 60 % 60:02d}:{used % 60:02d}"
    text = os.fsdecode(command or b"[" + name + b"]")
    if uid not in users:
        users[uid] = _user(uid)
    return f"{users[uid]:<8} {pid:>7} {int(fields[1]):>7} {share:>2} {since} {on:<8} {clock} {text}"


def _user(uid: int) -> str:
    import pwd

    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
    return name if len(name) <= 8 else name[:7] + "+"


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
