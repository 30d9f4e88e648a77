# A CPython that has been at work: half of the standard library, and 100 MiB of objects.
import asyncio
import decimal
import email.message
import http.client
import json
import logging
import re
import signal
import sqlite3
import statistics
import urllib.request
import xml.etree.ElementTree as tree
from pathlib import Path

BYTES = 100 << 20

rows: list[dict[str, object]] = []


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def work(number: int) -> None:
    await asyncio.sleep(0)
    row = {"id": number, "name": f"name {number}", "tags": [f"tag {number % 97}", "all"]}
    rows.append(json.loads(json.dumps(row)))


async def warm_up() -> None:
    number = 0
    while resident() < BYTES:
        await asyncio.gather(*(work(number + one) for one in range(1000)))
        number += 1000


asyncio.run(warm_up())
database = sqlite3.connect(":memory:")
database.execute("create table names (name)")
database.executemany("insert into names values (?)", [(row["name"],) for row in rows[:1000]])
message = email.message.EmailMessage()
message["Subject"] = re.sub("name", "subject", str(rows[0]["name"]))
tree.fromstring("<a><b/></a>")
urllib.request.Request("http://localhost/")
http.client.HTTPConnection("localhost")
logging.getLogger("warmed").info("%s %s", decimal.Decimal(2).sqrt(), statistics.mean(range(1000)))
print("ready", flush=True)
while True:
    signal.pause()
