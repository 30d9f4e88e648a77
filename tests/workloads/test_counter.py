"""A counter that writes to a file goes on at exactly the last number plus one."""

import shutil
from pathlib import Path

from real_programs import program

from containers import Container, Woodfrog, eventually
from needs import needs

pytestmark = needs("root")


def numbers(work: Path) -> list[int]:
    """Return what has been counted; the last line may be half written only if it's alive."""
    return [int(line) for line in (work / "numbers").read_text().splitlines()]


def counting(woodfrog: Woodfrog) -> Container:
    """Start a counter."""
    container = woodfrog.run(program(woodfrog, ["/bin/sh", "/programs/counter.sh"]))
    container.wait_for("ready")
    return container


def goes_on(container: Container, last: int) -> None:
    """Assert that the next numbers follow the last one, each once."""
    work = container.bundle.work
    eventually(lambda: len(numbers(work)) > last + 10 or container.has_ended(), "it counts on")
    assert not container.has_ended(), container.told()
    container.kill()
    found = numbers(work)
    assert found == list(range(len(found)))


def frozen(container: Container) -> tuple[Path, int]:
    """Freeze the counter; return its image and the last number it counted."""
    image = container.woodfrog.directory / "new" / "directories" / "image"
    container.checkpoint(image)
    container.wait()
    last = numbers(container.bundle.work)[-1]
    container.delete()
    return image, last


def test_a_counter_goes_on_in_a_container_with_a_new_id(woodfrog: Woodfrog) -> None:
    container = counting(woodfrog)
    image, last = frozen(container)

    goes_on(woodfrog.restore(container.bundle, image), last)


def test_a_counter_goes_on_in_a_container_with_the_same_id(woodfrog: Woodfrog) -> None:
    container = counting(woodfrog)
    image, last = frozen(container)

    goes_on(woodfrog.restore(container.bundle, image, name=container.name), last)


def test_a_counter_goes_on_in_two_containers_side_by_side(woodfrog: Woodfrog) -> None:
    container = counting(woodfrog)
    image, last = frozen(container)
    other = program(woodfrog, ["/bin/false"], "other")
    shutil.copytree(container.bundle.work, other.work, dirs_exist_ok=True)

    first = woodfrog.restore(container.bundle, image)
    second = woodfrog.restore(other, image)

    assert not first.has_ended()
    goes_on(second, last)
    goes_on(first, last)


def test_a_counter_goes_on_after_create_and_restore(woodfrog: Woodfrog) -> None:
    container = counting(woodfrog)
    image, last = frozen(container)

    goes_on(woodfrog.create_and_restore(container.bundle, image), last)


def test_a_counter_left_running_and_its_image_both_go_on(woodfrog: Woodfrog) -> None:
    container = counting(woodfrog)
    image = woodfrog.directory / "image"
    before = len(numbers(container.bundle.work))
    container.checkpoint(image, "--leave-running")
    goes_on(container, before)
    last = len(numbers(container.bundle.work))
    container.delete()

    again = woodfrog.restore(container.bundle, image)
    eventually(lambda: len(numbers(container.bundle.work)) > last + 10, "it counts on")
    again.kill()

    # The image is older than the file's end: it counts from its own instant, in one go.
    tail = numbers(container.bundle.work)[last:]
    assert before <= tail[0] <= last
    assert tail == list(range(tail[0], tail[0] + len(tail)))


def test_a_directory_that_holds_a_checkpoint_is_refused_and_the_counter_counts_on(
    woodfrog: Woodfrog,
) -> None:
    container = counting(woodfrog)
    image = woodfrog.directory / "image"
    container.checkpoint(image, "--leave-running")
    before = (image / "checkpoint.img").read_bytes()

    refused = container.checkpoint(image, status=None)

    assert refused.status != 0
    assert "checkpoint.img" in refused.stderr
    assert [path.name for path in image.iterdir()] == ["checkpoint.img"]
    assert (image / "checkpoint.img").read_bytes() == before
    goes_on(container, len(numbers(container.bundle.work)))
