"""woodfrog checkpoint"""

from __future__ import annotations

import os
import sys

from woodfrog.cli import around, keeper, policies
from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.images import IMAGE_FLAGS, image_directory, log_failure
from woodfrog.cli.loading import found
from woodfrog.cli.main import main
from woodfrog.cli.report import warner
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
    parent = _parent(arguments, directory)
    ready = _status_descriptor(arguments["status_fd"])
    if ready < 0 and (status := keeper.has_done(arguments)) is not None:
        return status
    warn = warner(arguments.common)
    if arguments["pre_dump"]:
        show(arguments, _pre_dump(arguments, directory, parent, ready, warn))
        return 0
    container = found(arguments)
    container.require("checkpoint")
    policies.settle(arguments, container.state["annotations"], "checkpoint")
    announcement = around.announcement(arguments)
    if announcement:
        keeper.leave_to_others()
        announcement.tell(container, "save")
    try:
        statistics = _checkpoint(arguments, directory, parent, ready, warn)
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
    for loss in told(statistics, "losses"):
        warn(f"not kept: {loss}")
    show(arguments, statistics)
    return 0


def told(statistics: dict[str, object], key: str) -> list[str]:
    """Return lines for people that are among figures."""
    found = statistics.get(key)
    return [str(line) for line in found] if isinstance(found, (list, tuple)) else []


def show(arguments: Arguments, statistics: dict[str, object]) -> None:
    """Print figures, if they are wanted."""
    if arguments["stats"]:
        from woodfrog.runtime import jsontext

        sys.stdout.write(jsontext.write(statistics, 2) + "\n")


def _checkpoint(
    arguments: Arguments, directory: str, parent: str, ready: int, warn: Callable[[str], None]
) -> dict[str, object]:
    engine = bool(arguments["work_path"])
    with keeper.held(arguments) as container:
        container.require("checkpoint")
        from woodfrog.runtime import lifecycle
        from woodfrog.runtime.checkpoint import checkpoint
        from woodfrog.runtime.state import STOPPED

        leave_running = arguments["leave_running"]
        options = options_of(arguments, leave_running=leave_running, replace=engine, parent=parent)
        statistics = checkpoint(container, directory, options, around.gpus(arguments), main)
        if engine:
            from woodfrog.runtime import criu_files

            log = criu_files.log_name("dump.log", container.state["annotations"])
            criu_files.after_checkpoint(directory, arguments["work_path"], log, statistics, warn)
        _tell_ready(ready)
        if engine and not options.leave_running:
            # As engines know it of runc: they have their own record of the container.
            lifecycle.destroy(container, STOPPED, warn)
    return statistics


def _tell_ready(descriptor: int) -> None:
    if descriptor >= 0:
        try:
            os.write(descriptor, b"\0")
        except OSError:
            pass  # nobody wants to hear of it any more
        os.close(descriptor)


def options_of(
    arguments: Arguments, *, leave_running: bool, replace: bool, parent: str = ""
) -> CheckpointOptions:
    """Return what the policies come to for the engine."""
    from woodfrog.engine.checkpoint import CheckpointOptions

    return CheckpointOptions(
        leave_running=leave_running,
        compression=arguments["compression"],
        direct=arguments["direct"],
        sync=arguments["sync"],
        replace=replace,
        tcp_close=arguments["tcp_close"] or arguments["tcp_listen_only"],
        tcp_established=arguments["tcp_established"],
        tcp_skip_in_flight=arguments["tcp_skip_in_flight"] or arguments["skip_in_flight"],
        tcp_listen_only=arguments["tcp_listen_only"],
        unix_close=arguments["ext_unix_close"] or arguments["ext_unix_sk"],
        with_rootfs=arguments["with_rootfs"],
        parent=parent,
        # Who has built on an image is likely to go on so.
        track_changes=arguments["track_changes"] or bool(parent),
    )


def _pre_dump(
    arguments: Arguments, directory: str, parent: str, ready: int, warn: Callable[[str], None]
) -> dict[str, object]:
    """Store the memory alone."""
    engine = bool(arguments["work_path"])
    with keeper.held(arguments) as container:
        container.require("checkpoint")
        policies.settle(arguments, container.state["annotations"], "checkpoint")
        from woodfrog.runtime.checkpoint import pre_dump

        options = options_of(arguments, leave_running=True, replace=engine, parent=parent)
        try:
            statistics = pre_dump(container, directory, options, main)
        except BaseException as error:
            log_failure(arguments, "dump.log", container.state["annotations"], error)
            raise
        if engine:
            from woodfrog.runtime import criu_files

            criu_files.write_dump_statistics(arguments["work_path"], statistics, warn)
        _tell_ready(ready)
    return statistics


def _parent(arguments: Arguments, directory: str) -> str:
    """Return the directory of the image to build on; empty if there is none."""
    parent: str = arguments["parent"] or ""
    if (relative := arguments["parent_path"]) is not None:
        if os.path.isabs(relative):
            raise UsageError(
                f"--parent-path must be relative to the image's directory, and is {relative}"
            )
        # The image's own directory needn't be there yet.
        parent = os.path.normpath(os.path.join(directory, relative))
        if not os.path.isdir(parent):
            raise UsageError(
                f"--parent-path={relative}: there is no such directory, seen from {directory}"
            )
    if parent and os.path.realpath(parent) == os.path.realpath(directory):
        raise UsageError("the parent image and the new one need directories of their own")
    return parent


def _status_descriptor(number: int | None) -> int:
    """Return the descriptor that shall hear of the complete image, or -1."""
    if number is None:
        return -1
    try:
        os.set_inheritable(number, False)
    except (OSError, OverflowError):
        raise UsageError(f"--status-fd={number}: descriptor {number} is not open") from None
    return number


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
        Flag("lazy-pages", "", refused="an image is always whole; `restore --background` is lazy"),
        Flag(
            "page-server",
            "",
            value="ADDRESS",
            refused="images are written to a directory; let that be one that the other machine has",
        ),
        Flag(
            "pre-dump",
            "store its memory only, and let it run on; a checkpoint with that image as its parent"
            " then has little to store",
        ),
        Flag(
            "parent",
            "store only what has changed since the image in that directory; a restore needs both",
            value="DIR",
        ),
        Flag("parent-path", "the same, seen from the image's directory: runc's name", value="DIR"),
    ),
    run,
)
