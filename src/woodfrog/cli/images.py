"""What commands that read or write images share: flags, where an image is, the log of engines."""

from __future__ import annotations

from woodfrog.cli.flags import Arguments, Flag
from woodfrog.cli.report import explain, warner
from woodfrog.errors import UsageError

IMAGE_FLAGS = (
    Flag("image-path", "the directory of checkpoint.img", value="DIR"),
    Flag(
        "work-path",
        "given by engines; then --image-path is ./checkpoint unless given, an older image is"
        " replaced, and a container that stops is deleted, too",
        value="DIR",
    ),
)
PARENT_FLAG = Flag(
    "parent",
    "a directory with an image that this one builds on, unless `parent` beside it leads there"
    " (repeat it for more)",
    value="DIR",
    many=True,
)


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
    engine = bool(arguments.values.get("work_path"))
    directory = arguments["image_path"] or ("checkpoint" if engine else "")
    if not directory:
        raise UsageError(
            "--image-path is missing: the directory of checkpoint.img",
            hint="say where, like --image-path=/srv/images/web",
        )
    return directory, engine
