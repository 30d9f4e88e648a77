"""A machine has just so many huge pages, and says when they don't suffice."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bundles import Bundle, bind, mount
from containers import Woodfrog, verdict
from huge_pages import change, set_aside
from needs import needs

pytestmark = needs("root", "command gcc")
PROGRAMS = Path(__file__).parent / "programs"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("hugetlb.c", ("huge pages of 2 MiB, of which", "are lacking: 1 are free")),
        ("hugetlbfs.c", ("too few huge pages are free for ",)),
    ],
)
def test_too_few_huge_pages_are_told(
    source: str, words: tuple[str, ...], woodfrog: Woodfrog, build: Callable[..., Path]
) -> None:
    program = build(PROGRAMS / source)
    bundle = Bundle(woodfrog.directory / "bundle", ["/programs/" + program.name])
    (bundle.rootfs / "programs").mkdir()
    bundle.add_mount(bind(program.parent, "/programs"))
    (bundle.rootfs / "huge").mkdir()
    bundle.add_mount(mount("/huge", "hugetlbfs"))
    bundle.add_capabilities("CAP_IPC_LOCK")
    image = woodfrog.directory / "image"
    with set_aside("2048kB 30"):
        container = woodfrog.run(bundle)
        container.wait_for("ready")
        container.checkpoint(image)
        container.wait()
        container.delete()
        change("2048kB 1")

        bundle.save()
        refused = woodfrog(
            "restore",
            "--detach",
            f"--image-path={image}",
            f"--bundle={bundle.directory}",
            container.name,
            status=None,
        )
        change("2048kB 30")
        restored = woodfrog.restore(bundle, image)
        said = verdict(restored)
        restored.delete()

    assert refused.status not in (0, None)
    assert [word for word in words if word not in refused.stderr] == [], refused.stderr
    assert "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert said == "ok\n"
