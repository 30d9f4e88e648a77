"""What of an io_uring can't be kept, and what is registered with it."""

import errno

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.remote.held import HeldProcess
from woodfrog.resources.files.open_file import OpenFile
from woodfrog.resources.io_uring_memory import Contents, Sample
from woodfrog.resources.io_uring_shown import Shown

_EVENTFD = b"anon_inode:[eventfd]"


def refuse_kind(answers: dict[str, int]) -> None:
    if answers["enter"] == -errno.EBADFD:
        raise UnsupportedResource(
            "is an io_uring that has not been enabled yet (IORING_SETUP_R_DISABLED),"
            " which cannot be saved yet"
        )
    if -errno.EACCES in answers.values():
        raise UnsupportedResource(
            "is an io_uring with restrictions (IORING_REGISTER_RESTRICTIONS),"
            " which cannot be saved yet"
        )
    if answers["region"] == -errno.EBUSY:
        raise UnsupportedResource(
            "is an io_uring with memory for the arguments of waits (IORING_REGISTER_MEM_REGION),"
            " which cannot be saved yet"
        )


def polls_devices(answers: dict[str, int], sample: Sample) -> bool:
    """Tell whether a ring polls devices (IORING_SETUP_IOPOLL): such ones refuse NAPI."""
    return answers["napi"] == -errno.EINVAL and sample.knows_napi


def refuse_shown(shown: Shown) -> None:
    if any(flags for _, _, flags in shown.overflown):
        raise UnsupportedResource(
            "is an io_uring with completions for which it had no room, and that tell more than a"
            " result; they cannot be saved yet",
            hint="let the program take its completions first",
        )


def refuse_personalities(shown: Shown, contents: Contents) -> None:
    """Refuse registered credentials; newer kernels show them no more, but requests name them."""
    if shown.personalities or contents.personalities:
        raise UnsupportedResource(
            "is an io_uring with registered credentials (IORING_REGISTER_PERSONALITY),"
            " which cannot be saved yet"
        )


def refuse_unmapped(process: HeldProcess, shown: Shown) -> None:
    """Refuse registered buffers whose memory the process has not any more."""
    for buffer in shown.buffers:
        at, end = buffer.address, buffer.address + buffer.length
        for row in read_maps(process.pid):
            if row[0] <= at < row[1] and row[2] & 3 == 3:
                at = row[1]
        if at < end:
            raise UnsupportedResource(
                f"is an io_uring with a registered buffer at {buffer.address:#x} that the process"
                " has not mapped any more; it cannot be saved yet"
            )


def descriptor_of(table: list[tuple[int, OpenFile, bool]], name: bytes) -> int:
    """Return as what a process has a registered file open."""
    if not name:
        return -1
    found = {id(file): number for number, file, _ in table if file.target == name}
    if len(found) != 1:
        many = "several descriptors" if found else "no descriptor"
        raise UnsupportedResource(
            f"is an io_uring with a registered file, {name.decode(errors='replace')}, for which the"
            f" process has {many}; it cannot be saved yet",
            hint="a registered file can be saved while the process has it open, once",
        )
    return next(iter(found.values()))


def eventfd_of(table: list[tuple[int, OpenFile, bool]]) -> int:
    """Return the descriptor of the registered eventfd, if there is but one that it can be."""
    found = {id(file): number for number, file, _ in table if file.target == _EVENTFD}
    if len(found) != 1:
        raise UnsupportedResource(
            "is an io_uring with a registered eventfd, and the process has"
            f" {len(found)} that it may be; the kernel does not tell, so it cannot be saved yet"
        )
    return next(iter(found.values()))
