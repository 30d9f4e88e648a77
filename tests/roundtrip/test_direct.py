"""Images that are written and read past the page cache: `--direct`."""

import ctypes
import mmap
from collections.abc import Callable
from pathlib import Path

from test_background import frozen

from containers import Woodfrog, verdict
from needs import needs

pytestmark = needs("root", "command gcc")

MiB = 1 << 20


def is_cached(path: Path, offset: int) -> bool:
    """Tell whether a page of a file is in the page cache (mincore(2))."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        there = ctypes.create_string_buffer(1)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mincore(ctypes.c_void_p(address + offset), 4096, there) == 0
        return bool(there.raw[0] & 1)


def test_pages_go_past_the_page_cache(woodfrog: Woodfrog, build: Callable[..., Path]) -> None:
    bundle, image = frozen(woodfrog, build, "writes", "--direct")
    file = image / "checkpoint.img"
    assert file.stat().st_size > 4 * MiB
    assert not is_cached(file, 2 * MiB)
    container = woodfrog.restore(bundle, image, "--direct")
    assert not is_cached(file, 2 * MiB)
    assert verdict(container) == "ok\n"
    container.delete()

    for name in ("ready", "check", "out"):
        (bundle.work / name).unlink(missing_ok=True)
    assert verdict(woodfrog.restore(bundle, image)) == "ok\n"
    assert is_cached(file, 2 * MiB)
