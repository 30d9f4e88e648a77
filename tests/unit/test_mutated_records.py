"""Whatever the records of an image say, it is admitted or refused: nothing else comes of it."""

import random
from pathlib import Path
from typing import Any, get_args

import pytest

from images import RECORDS
from mutations import admitted, mutated, simplest
from woodfrog.engine.admission import Bounds
from woodfrog.image.container_file import Reader
from woodfrog.remote.vdso import Vdso
from woodfrog.resources.container import ContainerRecord
from woodfrog.resources.process import Process

SAMPLE = Path(__file__).resolve().parent.parent / "samples" / "image-1.0"
_ALL, _NONE = (1 << 41) - 1, 0


def bounds(bounding: int) -> Bounds:
    return Bounds(
        bounding=bounding,
        no_new_privs=False,
        seccomp=None,
        rlimits={},
        oom_score_adj=None,
        spec_hostname="",
        terminal=True,
        cgroups={},
        may_make_cgroups=True,
        tmpfs=("/tmp",),
        new_namespaces=frozenset(("pid", "mount", "network", "ipc", "uts")),
    )


@pytest.fixture
def sample() -> tuple[list[Any], int]:
    with Reader(str(SAMPLE)) as reader:
        return reader.raw_records(), reader.page_bytes


def test_the_sample_itself_is_admitted(sample: tuple[list[Any], int]) -> None:
    assert admitted(*sample, bounds(_ALL), Vdso())


def test_other_values_are_admitted_or_refused(sample: tuple[list[Any], int]) -> None:
    dice, vdso = random.Random(1), Vdso()
    records, page_bytes = sample
    for _ in range(1500):
        said, undo = mutated(records, dice)
        try:
            admitted(records, page_bytes, bounds(_ALL), vdso)
        except Exception as error:
            pytest.fail(f"{said}: {error!r}")
        undo()


def test_records_of_all_kinds_are_admitted_or_refused(sample: tuple[list[Any], int]) -> None:
    dice, vdso = random.Random(1), Vdso()
    records, page_bytes = sample
    without = [record for record in records if record["kind"] != "process"]
    for kind in get_args(RECORDS):
        if kind is ContainerRecord:
            continue
        for _ in range(30):
            more = [simplest(kind, dice) for _ in range(dice.randrange(1, 3))]
            base = without if kind is Process else records
            try:
                admitted([*base, *more], page_bytes, bounds(dice.choice((_ALL, _NONE))), vdso)
            except Exception as error:
                pytest.fail(f"{more}: {error!r}")


@pytest.mark.parametrize(
    "fields",
    [{"io_priority": 1 << 32 | 1 << 13}, {"policy": 1 << 32}, {"nice": 20}, {"runtime": -1}],
)
def test_no_numbers_of_which_the_kernel_takes_a_part(
    sample: tuple[list[Any], int], fields: dict[str, int]
) -> None:
    records, page_bytes = sample
    process = next(record for record in records if record["kind"] == "process")
    process["threads"][0]["scheduling"] |= fields

    assert not admitted(records, page_bytes, bounds(_ALL), Vdso())
