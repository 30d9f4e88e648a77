"""woodfrog restore"""

from __future__ import annotations

import os

from woodfrog.cli import creating
from woodfrog.cli.checkpoint import IMAGE_FLAGS, NOT_YET, RUNC_FLAGS, image_directory
from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.report import tell, warner
from woodfrog.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.runtime.create import Request


def run(arguments: Arguments) -> int:
    """Thaw a container."""
    directory, _ = image_directory(arguments)
    if not os.path.exists(os.path.join(directory, "checkpoint.img")):
        raise ImageError(
            f"there is no checkpoint.img in {directory}",
            hint="name the directory that `woodfrog checkpoint --image-path` was given",
        )
    from woodfrog.runtime.restore import restore

    common = arguments.common
    return restore(
        lambda: _request(arguments, directory),
        common.root,
        arguments.rest[0],
        directory,
        warn=warner(common),
        tell=tell,
        clock=arguments["clock"],
        console_socket=arguments["console_socket"] or "",
        pid_file=arguments["pid_file"] or "",
        detach=arguments["detach"],
        keep=arguments["keep"],
        subreaper=not arguments["no_subreaper"],
    )


def _request(arguments: Arguments, directory: str) -> Request:
    if arguments["do"]:
        from woodfrog.runtime.do import Sandbox

        sandbox = Sandbox(volumes=arguments["volume"])
        wanted = sandbox.request(arguments.common.root, arguments.rest[0], ["restored"])
        creating.fill(wanted, arguments)
        sandbox.fill_from(wanted, directory)
        return wanted
    wanted = creating.request(arguments)
    from woodfrog.runtime import spec

    config = spec.parse(wanted.config_text, "config.json")
    creating.refuse_lost_terminal(wanted, config, arguments["detach"])
    return wanted


COMMAND = Command(
    "restore",
    "ID",
    "Thaw an image into a container that `create` has made, or that is created now from a bundle.\n"
    "In the foreground signals go to it and its exit status comes back, as with run.",
    (
        "woodfrog create -b /srv/web web2 && woodfrog restore --image-path=/srv/images/web web2",
        "woodfrog restore -b /srv/web --image-path=/srv/images/web --detach web3",
    ),
    (
        *IMAGE_FLAGS,
        *creating.FLAGS,
        Flag("detach", "don't wait for its end", short="d"),
        Flag("keep", "don't delete it at its end"),
        Flag("no-subreaper", "don't adopt orphans of a container without a pid namespace"),
        Flag(
            "clock",
            "which monotonic clock it sees: its own, going on, or this host's",
            value="WHICH",
            default="container",
            choices=("container", "host"),
        ),
        Flag("do", "the image is of `woodfrog do`: no bundle is needed"),
        Flag(
            "volume",
            "with --do: a directory or file it may write to (repeat it for more)",
            value="SRC[:DST]",
            many=True,
        ),
        Flag("tcp-close", "no effect here: the checkpoint decides"),
        Flag("ext-unix-close", "no effect here: the checkpoint decides"),
        *RUNC_FLAGS,
        Flag("lsm-profile", "", value="PROFILE", refused=NOT_YET),
        Flag("lsm-mount-context", "", value="CONTEXT", refused=NOT_YET),
    ),
    run,
)
