"""Room for the memory of processes that a rollback makes again, of parents that still stand."""

from collections.abc import Collection, Mapping, Sequence

from woodfrog.engine.reset_room import bytes_of, data_bytes_of
from woodfrog.engine.root_stub import STUB_BYTES
from woodfrog.engine.standing import Standing
from woodfrog.errors import UnsupportedResource
from woodfrog.resources import limits
from woodfrog.resources.limits import Limit
from woodfrog.resources.process import Process

# The loop, and what else is there for a moment.
_SPARE = 1 << 20


def limits_at_birth(
    lost: Sequence[Process], standing: Collection[Standing]
) -> dict[int, list[Limit]]:
    """Return the limits that processes are born with, parents first, but those from outside."""
    known = {one.then.pid: one.then.limits for one in standing}
    for record in lost:
        if record.parent in known:
            known[record.pid] = known[record.parent]
    return {record.pid: known[record.pid] for record in lost if record.pid in known}


def refuse_narrow(lost: Sequence[Process], at_birth: Mapping[int, list[Limit]]) -> None:
    """Refuse to make processes that may not have their memory and that of a stub."""
    if not at_birth or limits.may_exceed_hard():
        return
    for record in lost:
        mappings = record.memory.mappings
        needed = {limits.SPACE: bytes_of(mappings), limits.DATA: data_bytes_of(mappings)}
        for which, used in needed.items():
            total = used + STUB_BYTES + _SPARE
            if record.pid in at_birth and total > at_birth[record.pid][which].hard:
                raise UnsupportedResource(
                    f"making process {record.pid} again needs {total} bytes of the memory that"
                    f" {limits.NAMES[which]} is about, and the hard limit that it is born with is"
                    f" {at_birth[record.pid][which].hard}",
                    hint="run woodfrog with CAP_SYS_RESOURCE, or restore the image into a new"
                    " container instead",
                )
