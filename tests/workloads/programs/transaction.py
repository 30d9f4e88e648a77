"""SQLite in the middle of a transaction: its rows, its lock and its journal are as they were."""

import sqlite3
import sys
import time
from pathlib import Path

WORK = Path("/work")
ROWS = 20_000


def rows(start: int) -> list[tuple[int, str]]:
    """Return rows that anybody can make again."""
    return [(number, f"{number * 7919:x}" * 5) for number in range(start, start + ROWS)]


def main() -> int:
    """Begin, be frozen, go on, commit; return whether all is well."""
    wrong: list[str] = []
    path = WORK / "data.db"
    first = sqlite3.connect(path, isolation_level=None, timeout=0.2)
    second = sqlite3.connect(path, isolation_level=None, timeout=0.2)
    # A small cache, so that pages spill into the file and its journal before the commit.
    first.execute("PRAGMA cache_size = 50")
    first.execute("CREATE TABLE t (number INTEGER PRIMARY KEY, text TEXT)")
    first.execute("BEGIN")
    first.executemany("INSERT INTO t VALUES (?, ?)", rows(0))
    first.execute("COMMIT")
    first.execute("BEGIN IMMEDIATE")
    first.executemany("INSERT INTO t VALUES (?, ?)", rows(ROWS))
    first.execute("UPDATE t SET text = 'changed' WHERE number % 100 = 0")
    cursor = first.execute("SELECT number FROM t ORDER BY number")
    started = [number for (number,) in cursor.fetchmany(1000)]
    (WORK / "ready").touch()
    while not (WORK / "check").exists():
        time.sleep(0.005)

    try:
        second.execute("BEGIN IMMEDIATE")
        wrong.append("another connection gets the lock")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            wrong.append(f"another connection: {error}")
    started += [number for (number,) in cursor]
    if started != list(range(2 * ROWS)):
        wrong.append("a cursor doesn't go on where it was")
    first.executemany("INSERT INTO t VALUES (?, ?)", rows(2 * ROWS))
    first.execute("COMMIT")
    expected = [(n, "changed" if n < 2 * ROWS and n % 100 == 0 else t) for n, t in rows(0)]
    expected += [(n, "changed" if n % 100 == 0 else t) for n, t in rows(ROWS)]
    expected += rows(2 * ROWS)
    if second.execute("SELECT number, text FROM t ORDER BY number").fetchall() != expected:
        wrong.append("other rows")
    if second.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
        wrong.append("the file is damaged")
    (WORK / "out").write_text("\n".join(wrong) or "ok\n")
    return 1 if wrong else 0


sys.exit(main())
