"""The memory of large processes, at which is looked in another way than at that of small ones."""

import pytest
from talking import set_back_after, talking, tell

from containers import Container, Woodfrog, verdict
from needs import needs

NOTED = ("--leave-running", "--sync=none", "--track-changes")

pytestmark = needs("root", "command python3")


@pytest.fixture
def large(woodfrog: Woodfrog) -> Container:
    """Start a program that has much memory."""
    return talking(woodfrog, "large.py")


def looks_well(container: Container) -> bool:
    """Have the program look whether all is as it was."""
    tell(container, "check")
    return verdict(container) == "ok\n"


@pytest.mark.parametrize("how", [NOTED, NOTED[:-1]], ids=["noted", "compared"])
@pytest.mark.parametrize("change", ["write", "advise", "unmap"])
def test_it_goes_back(
    change: str, how: tuple[str, ...], large: Container, woodfrog: Woodfrog
) -> None:
    image = woodfrog.directory / "image"
    large.checkpoint(image, *how)
    set_back_after(change, large, image)
    assert looks_well(large)


def test_its_advice_is_in_images_that_build_on_another(
    large: Container, woodfrog: Woodfrog
) -> None:
    first, second = woodfrog.directory / "first", woodfrog.directory / "second"
    large.checkpoint(first, *NOTED)
    large.checkpoint(second, *NOTED[:-1], f"--parent={first}")
    large.delete()

    assert looks_well(woodfrog.restore(large.bundle, second))
