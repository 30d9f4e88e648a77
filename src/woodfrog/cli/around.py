"""What the user wants done around a freeze and a thaw: GPUs, and a program in the container."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from woodfrog.cli.flags import Arguments
    from woodfrog.runtime.announcing import Announcement
    from woodfrog.runtime.cuda import Toggle


def gpus(arguments: Arguments) -> Toggle | None:
    """Return what suspends and resumes the use of GPUs, if it is asked for."""
    if not arguments["cuda_checkpoint_path"]:
        return None
    from woodfrog.runtime.cuda import Toggle

    sequential = arguments["cuda_checkpoint_sequential"]
    return Toggle(arguments["cuda_checkpoint_path"], sequential=sequential)


def announcement(arguments: Arguments) -> Announcement | None:
    """Return what tells the container of it, if that is asked for."""
    if not (arguments["save_restore_exec_argv"] or "").split():
        return None
    from woodfrog.runtime.announcing import Announcement

    timeout = arguments["save_restore_exec_timeout"]
    return Announcement(arguments["save_restore_exec_argv"], timeout)
