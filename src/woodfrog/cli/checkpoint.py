"""woodfrog checkpoint"""

from __future__ import annotations

import sys

from woodfrog.cli import policies
from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.loading import held
from woodfrog.cli.policies import NOT_YET
from woodfrog.cli.report import warner
from woodfrog.errors import UsageError


def run(arguments: Arguments) -> None:
    """Freeze a container."""
    directory, replace = image_directory(arguments)
    with held(arguments) as container:
        container.require("checkpoint")
        policies.settle(arguments, container.state["annotations"])
        from woodfrog.engine.checkpoint import CheckpointOptions
        from woodfrog.runtime import jsontext
        from woodfrog.runtime.checkpoint import checkpoint

        options = CheckpointOptions(
            leave_running=arguments["leave_running"],
            compression=arguments["compression"],
            sync=arguments["sync"],
            replace=replace,
            tcp_close=arguments["tcp_close"],
            unix_close=arguments["ext_unix_close"] or arguments["ext_unix_sk"],
        )
        statistics = checkpoint(container, directory, options)
    losses = statistics.get("losses")
    for loss in losses if isinstance(losses, (list, tuple)) else ():
        warner(arguments.common)(f"not kept: {loss}")
    if arguments["stats"]:
        sys.stdout.write(jsontext.write(statistics, 2) + "\n")


def image_directory(arguments: Arguments) -> tuple[str, bool]:
    """Return the image's directory, and whether this is an engine's call (it has a work path)."""
    engine = bool(arguments["work_path"])
    directory = arguments["image_path"] or ("checkpoint" if engine else "")
    if not directory:
        raise UsageError(
            "--image-path is missing: the directory of checkpoint.img",
            hint="say where, like --image-path=/srv/images/web",
        )
    return directory, engine


IMAGE_FLAGS = (
    Flag("image-path", "the directory of checkpoint.img", value="DIR"),
    Flag(
        "work-path",
        "given by engines; then --image-path is ./checkpoint unless given, and an older image is"
        " replaced",
        value="DIR",
    ),
)
RUNC_FLAGS = (
    Flag("empty-ns", "", value="NAMESPACE", refused=NOT_YET),
    Flag("auto-dedup", "", refused="images are written once, there is nothing to remove"),
    Flag("lazy-pages", "", refused=NOT_YET),
)

COMMAND = Command(
    "checkpoint",
    "ID",
    "Freeze a running container into the file checkpoint.img in a directory, which is made. The\n"
    "container stops then, unless --leave-running. If anything fails, it runs on as before.",
    (
        "woodfrog checkpoint --image-path=/srv/images/web web",
        "woodfrog checkpoint --image-path=/srv/images/web2 --leave-running --compression=zstd web",
    ),
    (
        *IMAGE_FLAGS,
        Flag("leave-running", "let the container run on"),
        Flag("stats", "print figures about the checkpoint as JSON"),
        *policies.of("checkpoint"),
        *RUNC_FLAGS,
        Flag("tcp-skip-in-flight", "", refused=NOT_YET),
        Flag("link-remap", "", refused="deleted files that are open are refused by name"),
        Flag("status-fd", "", value="N", refused=NOT_YET),
        Flag("page-server", "", value="ADDRESS", refused=NOT_YET),
        Flag("pre-dump", "", refused=NOT_YET),
        Flag("parent-path", "", value="DIR", refused=NOT_YET),
    ),
    run,
)
