"""Which CPU may go on with what another one began."""

import msgspec
import pytest

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.resources.cpu import Cpu, CpuCheck, RegisterState, check, refuse_lesser

AVX, MASKS = 1 << 2, 1 << 5
HERE = Cpu(
    vendor="A",
    model="A 1",
    features=["avx", "sse"],
    enabled=7,
    area=832,
    states=[RegisterState(number=2, offset=576, size=256)],
)


def of(**fields: object) -> Cpu:
    return msgspec.structs.replace(HERE, **fields)


@pytest.mark.parametrize("how", CpuCheck)
def test_the_same_cpu_will_do(how: CpuCheck) -> None:
    refuse_lesser(HERE, HERE, 7, how)
    refuse_lesser(of(features=["sse"], enabled=3, states=[]), HERE, 3, how)


@pytest.mark.parametrize(
    "there, used, refused_by",
    [
        (of(features=["avx", "avx2", "sse"]), AVX, {"strict"}),
        (of(enabled=7 | MASKS), AVX, {"strict"}),
        (of(enabled=7 | MASKS), AVX | MASKS, {"strict", "used"}),
        (of(states=[RegisterState(number=2, offset=640, size=256)]), AVX, {"strict", "used"}),
        (of(states=[RegisterState(number=2, offset=640, size=256)]), 3, set()),
    ],
)
def test_another_is_refused_by_what_it_lacks(there: Cpu, used: int, refused_by: set[str]) -> None:
    for how in CpuCheck:
        if how in refused_by:
            with pytest.raises(UnsupportedResource, match="this CPU"):
                refuse_lesser(there, HERE, used, how)
        else:
            refuse_lesser(there, HERE, used, how)


def test_only_what_nobody_uses_may_be_done_without() -> None:
    with pytest.raises(UnsupportedResource) as caught:
        refuse_lesser(of(enabled=7 | MASKS), HERE, AVX | MASKS, CpuCheck.STRICT)
    assert "avx512-masks" in str(caught.value)
    assert "--cpu-check" not in caught.value.hint
    with pytest.raises(UnsupportedResource) as caught:
        refuse_lesser(of(enabled=7 | MASKS), HERE, AVX, CpuCheck.STRICT)
    assert "--cpu-check=used" in caught.value.hint


@pytest.mark.parametrize(
    "hostile",
    [
        {"model": "\x1b[2J"},
        {"features": ["x" * 64]},
        {"features": ["a"] * 2000},
        {"states": [RegisterState(number=1 << 40, offset=0, size=0)]},
    ],
)
def test_a_hostile_cpu_is_damage(hostile: dict[str, object]) -> None:
    check(HERE)
    with pytest.raises(ImageError):
        check(of(**hostile))
