"""woodfrog rollback"""

from __future__ import annotations

from woodfrog.cli import keeper, policies
from woodfrog.cli.checkpoint import show, told
from woodfrog.cli.flags import Arguments, Command, Flag
from woodfrog.cli.images import IMAGE_FLAGS, PARENT_FLAG, image_directory
from woodfrog.cli.main import main
from woodfrog.cli.report import warner


def run(arguments: Arguments) -> int:
    """Set a running container back."""
    directory, _ = image_directory(arguments)
    if (status := keeper.has_done(arguments)) is not None:
        return status
    with keeper.held(arguments) as container:
        container.require("rollback")
        policies.settle(arguments, container.state["annotations"], "rollback")
        from woodfrog.runtime.rollback import rollback

        statistics = rollback(
            container,
            directory,
            parents=arguments["parent"],
            file_validation=arguments["file_validation"],
            tcp_close=arguments["tcp_close"],
            run=main,
        )
    warn = warner(arguments.common)
    for loss in told(statistics, "losses"):
        warn(f"not kept: {loss}")
    for lack in told(statistics, "missing"):
        warn(lack)
    show(arguments, statistics)
    return 0


COMMAND = Command(
    "rollback",
    "ID",
    "Set a running container back to an image, in place: its processes, namespaces, cgroup and\n"
    "mounts stay, and only what differs is changed. What can't be set back is refused by name;\n"
    "then the container runs on as it was.",
    (
        "woodfrog rollback --image-path=/srv/images/web web",
        "woodfrog checkpoint --leave-running --track-changes --image-path=/srv/images/web web",
    ),
    (
        IMAGE_FLAGS[0],
        PARENT_FLAG,
        Flag("stats", "print figures about the rollback as JSON"),
        *policies.of("rollback"),
    ),
    run,
)
