"""A call that every hold cuts short goes on from where it was, again and again."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_programs import Case, restored_from_a_snapshot, start

from containers import Woodfrog, verdict
from needs import needs

pytestmark = needs("root", "command gcc")
READER = Path(__file__).with_name("slow_reader.c")


@pytest.mark.parametrize("call", ["write", "sendmsg"])
def test_a_call_is_cut_short_by_many_holds(
    call: str, woodfrog: Woodfrog, build: Callable[..., Path]
) -> None:
    container = start(Case(READER, (call,)), woodfrog, build)
    container.wait_for("ready")
    for number in range(4):
        time.sleep(0.1)
        image = woodfrog.directory / f"image {number}"
        container.checkpoint(image, "--leave-running", "--sync=none")

    assert verdict(restored_from_a_snapshot(container, 0)) == "ok\n"
