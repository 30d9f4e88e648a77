"""woodfrog checkpoint"""

from __future__ import annotations

import os
import sys

from woodfrog.cli import around, policies
from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.loading import found, held
from woodfrog.cli.policies import NOT_YET
from woodfrog.cli.report import explain, warner
from woodfrog.errors import UsageError, WoodfrogError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from woodfrog.engine.checkpoint import CheckpointOptions


def run(arguments: Arguments) -> int:
    """Freeze a container."""
    if arguments["dry_run"]:
        from woodfrog.cli import check

        return check.examine(arguments)
    directory, _ = image_directory(arguments)
    if arguments["parent_path"] is not None:
        _check_parent(directory, arguments["parent_path"])
    ready = _status_descriptor(arguments["status_fd"])
    warn = warner(arguments.common)
    if arguments["pre_dump"]:
        _pre_dump(arguments, directory, warn)
        return 0
    container = found(arguments)
    container.require("checkpoint")
    policies.settle(arguments, container.state["annotations"], "checkpoint")
    announcement = around.announcement(arguments)
    if announcement:
        announcement.tell(container, "save")
    try:
        statistics = _checkpoint(arguments, directory, ready, warn)
    except BaseException as error:
        log_failure(arguments, "dump.log", container.state["annotations"], error)
        if announcement:
            try:
                announcement.tell(container, "resume")
            except Exception as another:
                error.add_note(str(another))
        raise
    if announcement and arguments["leave_running"]:
        try:
            announcement.tell(container, "resume")
        except WoodfrogError as error:
            warn(f"the image is complete, but {error}")
    losses = statistics.get("losses")
    for loss in losses if isinstance(losses, (list, tuple)) else ():
        warn(f"not kept: {loss}")
    if arguments["stats"]:
        from woodfrog.runtime import jsontext

        sys.stdout.write(jsontext.write(statistics, 2) + "\n")
    return 0


def _checkpoint(
    arguments: Arguments, directory: str, ready: int, warn: Callable[[str], None]
) -> dict[str, object]:
    engine = bool(arguments["work_path"])
    with held(arguments) as container:
        container.require("checkpoint")
        from woodfrog.runtime import lifecycle
        from woodfrog.runtime.checkpoint import checkpoint
        from woodfrog.runtime.state import STOPPED

        options = options_of(arguments, leave_running=arguments["leave_running"], replace=engine)
        statistics = checkpoint(container, directory, options, around.gpus(arguments))
        if (parent := arguments["parent_path"]) and not os.path.lexists(f"{directory}/parent"):
            os.symlink(parent, f"{directory}/parent")  # as CRIU leaves it, for whoever looks
        if engine:
            from woodfrog.runtime import criu_files

            log = criu_files.log_name("dump.log", container.state["annotations"])
            criu_files.after_checkpoint(directory, arguments["work_path"], log, statistics, warn)
        if ready >= 0:
            try:
                os.write(ready, b"\0")
            except OSError:
                pass  # nobody wants to hear of it any more
            os.close(ready)
        if engine and not options.leave_running:
            # As engines know it of runc: they have their own record of the container.
            lifecycle.destroy(container, STOPPED, warn)
    return statistics


def options_of(arguments: Arguments, *, leave_running: bool, replace: bool) -> CheckpointOptions:
    """Return what the policies come to for the engine."""
    from woodfrog.engine.checkpoint import CheckpointOptions

    return CheckpointOptions(
        leave_running=leave_running,
        compression=arguments["compression"],
        sync=arguments["sync"],
        replace=replace,
        tcp_close=arguments["tcp_close"],
        tcp_established=arguments["tcp_established"],
        tcp_skip_in_flight=arguments["tcp_skip_in_flight"] or arguments["skip_in_flight"],
        unix_close=arguments["ext_unix_close"] or arguments["ext_unix_sk"],
        with_rootfs=arguments["with_rootfs"],
    )


def _pre_dump(arguments: Arguments, directory: str, warn: Callable[[str], None]) -> None:
    """Make the directory that engines expect; nothing is in it, as the next image is whole."""
    with held(arguments) as container:
        container.require("checkpoint")
        os.makedirs(directory, mode=0o700, exist_ok=True)
    if arguments["work_path"]:
        from woodfrog.runtime import criu_files

        criu_files.write_dump_statistics(arguments["work_path"], {}, warn)
    warn("--pre-dump saves nothing yet: the checkpoint after it is whole, and takes its time")


def log_failure(
    arguments: Arguments, usual: str, annotations: dict[str, str], error: BaseException
) -> None:
    """Write what went wrong into the log in the work path, if there is one."""
    if arguments["work_path"]:
        from woodfrog.runtime import criu_files

        name = criu_files.log_name(usual, annotations)
        warn = warner(arguments.common)
        criu_files.write_log(arguments["work_path"], name, explain(error), warn)


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


def _check_parent(directory: str, parent: str) -> None:
    """Refuse a parent image that can't be, as runc does; one that can be isn't needed."""
    if os.path.isabs(parent):
        raise UsageError(
            f"--parent-path must be relative to the image's directory, and is {parent}"
        )
    # The image's own directory needn't be there yet.
    if not os.path.isdir(os.path.normpath(os.path.join(directory, parent))):
        raise UsageError(
            f"--parent-path={parent}: there is no such directory, seen from {directory}"
        )


def _status_descriptor(number: int | None) -> int:
    """Return the descriptor that shall hear of the complete image, or -1."""
    if number is None:
        return -1
    try:
        os.set_inheritable(number, False)
    except (OSError, OverflowError):
        raise UsageError(f"--status-fd={number}: descriptor {number} is not open") from None
    return number


IMAGE_FLAGS = (
    Flag("image-path", "the directory of checkpoint.img", value="DIR"),
    Flag(
        "work-path",
        "given by engines; then --image-path is ./checkpoint unless given, an older image is"
        " replaced, and a container that stops is deleted, too",
        value="DIR",
    ),
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
        Flag("dry-run", "only say what would keep it from being saved (see `woodfrog check`)"),
        Flag("stats", "print figures about the checkpoint as JSON"),
        *policies.of("checkpoint"),
        Flag(
            "status-fd",
            "write a zero byte there when the image is complete",
            value="N",
            number=True,
        ),
        Flag("lazy-pages", "", refused=NOT_YET),
        Flag("page-server", "", value="ADDRESS", refused=NOT_YET),
        Flag("pre-dump", "no effect yet, but for a warning; the container runs on"),
        Flag("parent-path", "no effect: each image is whole", value="DIR"),
    ),
    run,
)
