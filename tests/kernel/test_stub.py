"""Programs that a stub runs while we do something else."""

from collections.abc import Iterator

import pytest

from needs import needs
from woodfrog.engine import root_stub
from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.procfs.maps import read_maps
from woodfrog.remote.address import free_range
from woodfrog.remote.program import Program, ProgramError
from woodfrog.remote.stub import Stub
from woodfrog.remote.vdso import own_vdso, vdso_of

pytestmark = needs("root")

EBADF = 9
HIGH = 100


@pytest.fixture
def stub(sleeper: int) -> Iterator[Stub]:
    """Return a stub, made of a process that sleeps."""
    used = [(one[0], one[1]) for one in read_maps(sleeper)]
    size = root_stub.STUB_BYTES
    base = free_range(used, size + 4096).start
    with open("/dev/null", "rb") as null:
        pages = null.fileno()
        made, store = root_stub.make(
            sleeper, base, size, own_vdso(), high=HIGH, pages=pages, time_offsets=None
        )
    assert store == HIGH
    yield made
    made.close()


def close(stub: Stub, number: int) -> Program:
    """Return a program that closes a descriptor."""
    program = stub.program()
    program.call(SYS.CLOSE, number)
    return program


def test_what_runs_aside_ends_before_the_next_begins(stub: Stub) -> None:
    program = stub.program()
    program.call(SYS.NANOSLEEP, (0).to_bytes(8, "little") + (10**7).to_bytes(8, "little"), 0)
    program.call(SYS.DUP3, HIGH, HIGH + 1, 0)
    stub.run_aside(program)
    stub.run(close(stub, HIGH + 1))


def test_single_calls_wait_for_it_too(stub: Stub) -> None:
    program = stub.program()
    program.call(SYS.DUP3, HIGH, HIGH + 1, 0)
    stub.run_aside(program)
    instruction = vdso_of(stub.pid) + own_vdso().syscall
    assert stub.call_at(instruction, SYS.CLOSE, HIGH + 1) == 0


def test_what_fails_aside_is_raised_by_what_comes_next(stub: Stub) -> None:
    stub.run_aside(close(stub, HIGH + 1))
    with pytest.raises(ProgramError) as caught:
        stub.run(close(stub, HIGH))
    assert caught.value.errno == EBADF
    # ... once.
    stub.run(close(stub, HIGH))
