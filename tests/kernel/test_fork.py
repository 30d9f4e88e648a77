"""fork(2) into a cgroup."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from needs import needs
from woodfrog.kernel.fork import fork_into_cgroup
from woodfrog.runtime.cgroups import places

pytestmark = needs("root")


@pytest.fixture
def group() -> Iterator[tuple[str, int]]:
    """Yield the name of a v2 cgroup, and a descriptor of it."""
    top = places.mounted(places.here()).get("")
    if top is None:
        pytest.skip("no v2 cgroup tree is mounted")
    directory = Path(top) / f"wf-fork-{os.getpid()}"
    directory.mkdir()
    descriptor = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    try:
        yield directory.name, descriptor
    finally:
        os.close(descriptor)
        directory.rmdir()


def test_a_child_is_born_in_a_group_and_goes_on_like_any(group: tuple[str, int]) -> None:
    name, descriptor = group
    answer, write = os.pipe()
    pid = fork_into_cgroup(descriptor)
    if pid == 0:
        try:
            place = Path("/proc/self/cgroup").read_text().splitlines()[-1]
            # Python and the C library know the child as what it is.
            same = threading.get_native_id() == os.getpid()
            thread = threading.Thread(target=os.write, args=(write, f"{place} {same}".encode()))
            thread.start()
            thread.join()
        finally:
            os._exit(3)
    os.close(write)
    with os.fdopen(answer) as file:
        assert file.read() == f"0::/{name} True"
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


def test_what_is_no_group_is_refused() -> None:
    with open("/dev/null") as file, pytest.raises(OSError, match="clone3: "):
        fork_into_cgroup(file.fileno())
    assert os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1] == 0


def test_the_interpreter_is_not_told(group: tuple[str, int]) -> None:
    told: list[int] = []
    os.register_at_fork(before=lambda: told.append(1), after_in_child=lambda: told.append(2))
    pid = fork_into_cgroup(group[1])
    if pid == 0:
        os._exit(len(told))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
