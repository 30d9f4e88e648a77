"""woodfrog restore"""

from __future__ import annotations

import os

from woodfrog.cli import around, creating, policies
from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.images import IMAGE_FLAGS, PARENT_FLAG, image_directory, log_failure
from woodfrog.cli.main import main
from woodfrog.cli.report import log, tell, warner
from woodfrog.errors import ImageError, UsageError
from woodfrog.runtime.state import UnknownContainer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.engine.template import Template
    from woodfrog.runtime.create import Request
    from woodfrog.runtime.state import Container


def run(arguments: Arguments) -> int:
    """Thaw a container."""
    if arguments["template"]:
        from woodfrog.cli import cloning

        return cloning.run(arguments, thaw)
    return thaw(arguments, _image(arguments), None)


def _image(arguments: Arguments) -> str:
    """Return the directory of the image."""
    directory, _ = image_directory(arguments)
    if not os.path.exists(os.path.join(directory, "checkpoint.img")):
        from woodfrog.runtime import handover

        directory = handover.redeemed(directory)
    if not os.path.exists(os.path.join(directory, "checkpoint.img")):
        raise ImageError(
            f"there is no checkpoint.img in {directory}",
            hint="name the directory that `woodfrog checkpoint --image-path` was given",
        )
    return directory


def thaw(arguments: Arguments, directory: str, template: Template | None) -> int:
    """Thaw an image, whose memory may lie ready in a template that we are a fork of."""
    from woodfrog.cli.loading import found
    from woodfrog.runtime.restore import Options, restore

    into: Container | Request
    try:
        into = container = found(arguments)
        annotations = container.state["annotations"]
    except UnknownContainer:
        into, annotations = _request(arguments)
    policies.settle(arguments, annotations, "restore")
    options = Options()
    options.clock = arguments["clock"]
    options.cpu_check = arguments["cpu_check"]
    options.file_validation = arguments["file_validation"]
    options.tcp_established = arguments["tcp_established"]
    options.tcp_close = arguments["tcp_close"] or arguments["tcp_listen_only"]
    options.tcp_listen_only = arguments["tcp_listen_only"]
    options.gpus = around.gpus(arguments)
    options.announcement = around.announcement(arguments)
    options.spec_validation = arguments["restore_spec_validation"]
    options.background = arguments["background"] or arguments["lazy_pages"]
    options.parents = arguments["parent"]
    options.direct = arguments["direct"]
    options.track_changes = arguments["track_changes"]
    options.run = main
    if options.background and options.track_changes:
        raise UsageError("--background and --track-changes can't be had at once")
    if template:
        from woodfrog.runtime import templates

        options.template, options.midwife = template, templates.midwife()
    options.complain = lambda text: log("error", text, arguments.common)
    if arguments["do"]:
        options.spec_validation = "ignore"  # the config is made up here
    try:
        return restore(
            into,
            directory,
            options,
            warn=warner(arguments.common),
            tell=tell,
            console_socket=arguments["console_socket"] or "",
            pid_file=arguments["pid_file"] or "",
            work_path=arguments["work_path"] or "",
            detach=arguments["detach"],
            keep=arguments["keep"],
            subreaper=not arguments["no_subreaper"],
        )
    except BaseException as error:
        log_failure(arguments, "restore.log", annotations, error)
        raise


def _request(arguments: Arguments) -> tuple[Request, dict[str, str]]:
    """Return what is to be created for the restore, and its annotations."""
    if arguments["do"]:
        from woodfrog.runtime.do import Sandbox

        sandbox = Sandbox(arguments["root"] or "/", volumes=arguments["volume"])
        wanted = sandbox.request(arguments.common.root, arguments.rest[0], ["restored"])
        creating.fill(wanted, arguments)
        return wanted, {}
    if arguments["root"]:
        raise UsageError(
            "--root after the command is for images of `do`, with --do",
            hint="where the state of containers is kept stands before the command",
        )
    wanted = creating.request(arguments)
    config = wanted.config
    creating.refuse_lost_terminal(wanted, config, arguments["detach"])
    return wanted, config.get("annotations") or {}


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
        PARENT_FLAG,
        *creating.FLAGS,
        Flag("detach", "don't wait for its end", short="d"),
        Flag("keep", "don't delete it at its end"),
        Flag("no-subreaper", "don't adopt orphans of a container without a pid namespace"),
        Flag("template", "fork it from an image that `woodfrog warm` has loaded", value="NAME"),
        Flag(
            "count",
            "with --template: so many containers, detached, named ID-1, ID-2, …",
            value="N",
            number=True,
        ),
        Flag("do", "the image is of `woodfrog do`: no bundle is needed"),
        Flag("root", "with --do: the directory that is its root, as for `do`", value="DIR"),
        Flag(
            "volume",
            "with --do: a directory or file it may write to (repeat it for more)",
            value="SRC[:DST]",
            many=True,
        ),
        *policies.of("restore"),
        Flag("lazy-pages", "runc's name for --background"),
        Flag(
            "lsm-profile",
            "",
            value="TYPE:NAME",
            refused="labels are those of the new container's config (process.apparmorProfile,"
            " process.selinuxLabel)",
        ),
        Flag(
            "lsm-mount-context",
            "",
            value="CONTEXT",
            refused="mounts are labelled as the new container's config says (linux.mountLabel)",
        ),
    ),
    run,
)
