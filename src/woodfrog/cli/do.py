"""woodfrog do"""

from __future__ import annotations

import os

from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.report import tell, warner


def run(arguments: Arguments) -> int:
    """Run a command in a sandbox."""
    from woodfrog.runtime.do import Sandbox
    from woodfrog.runtime.run import run as run_container

    root = os.path.realpath(arguments["root"])
    cwd = arguments["cwd"] or (os.getcwd() if root == "/" else "/")
    sandbox = Sandbox(root, cwd, arguments["volume"])
    sandbox.terminal = os.isatty(0)
    id = arguments["id"] or f"do-{os.urandom(4).hex()}"
    wanted = sandbox.request(arguments.common.root, id, arguments.rest)
    wanted.systemd_cgroup = arguments.common.systemd_cgroup
    wanted.options = arguments.common.recorded()
    wanted.warn = warner(arguments.common)
    return run_container(
        wanted,
        tell,
        detach=False,
        keep=False,
        subreaper=True,
        started=None if arguments["quiet"] else lambda: tell(f"this is container {id}"),
    )


COMMAND = Command(
    "do",
    "[--] COMMAND [ARGUMENTS]",
    "Run a command in a sandbox without a bundle: it sees this host's files, and what it writes\n"
    "goes to a layer in memory that is thrown away at the end (and is part of a checkpoint). It\n"
    "has no network but its own loopback.",
    (
        "woodfrog do -- python3 -m http.server",
        "woodfrog do --volume /srv/data:/data -- sh -c 'ls /data'",
    ),
    (
        Flag("root", "the directory that is its root", value="DIR", default="/"),
        Flag("cwd", "where the command starts (this directory, unless --root)", value="DIR"),
        Flag("quiet", "don't say which container it is", short="q"),
        Flag(
            "volume",
            "a directory or file it may write to (repeat it for more)",
            value="SRC[:DST]",
            many=True,
        ),
        Flag("id", "the container's id (made up unless given)", value="ID"),
    ),
    run,
    most=None,
    greedy_after=0,
)
