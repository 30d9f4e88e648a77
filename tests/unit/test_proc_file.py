"""Files in /proc of other processes need the right to look into them."""

import pytest

from woodfrog.errors import UnsupportedResource
from woodfrog.resources.files.open_file import O_PATH
from woodfrog.resources.files.proc_file import ProcFile

_SYS_PTRACE = 1 << 19


def of(name: bytes, flags: int = 0) -> ProcFile:
    """Return a file of process 7."""
    return ProcFile(id=1, flags=flags, point=b"/proc", pid=7, name=name, position=0, ended=False)


@pytest.mark.parametrize("name", [b"mem", b"maps", b"environ", b"fd", b"task/8/mem", b"root/etc"])
def test_what_is_private_needs_the_process_itself_or_a_capability(name: bytes) -> None:
    of(name).refuse_holders({7}, 0)
    of(name).refuse_holders({5}, _SYS_PTRACE)
    of(name, O_PATH).refuse_holders({5}, 0)
    with pytest.raises(UnsupportedResource, match="CAP_SYS_PTRACE"):
        of(name).refuse_holders({5}, 0)


@pytest.mark.parametrize("name", [b"status", b"", b"net/tcp", b"task/8/stat", b"task"])
def test_what_is_open_to_all_needs_nothing(name: bytes) -> None:
    of(name).refuse_holders({5}, 0)
