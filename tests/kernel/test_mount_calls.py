"""Paths opened inside another root."""

import os
import subprocess
from pathlib import Path

from woodfrog.kernel import mounts
from woodfrog.kernel.caller import HERE

RENAMES = """
import os
print("ready", flush=True)
while True:
    os.rename("one", "two")
    os.rename("two", "one")
"""


def test_renames_elsewhere_do_not_fail_a_look_up(tmp_path: Path) -> None:
    (tmp_path / "root/a").mkdir(parents=True)
    (tmp_path / "root/b").write_text("found")
    (tmp_path / "one").touch()
    root = os.open(tmp_path / "root", os.O_PATH)
    command = ["python3", "-I", "-S", "-c", RENAMES]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        path = "a/../" * 16 + "b"
        try:
            for _ in range(10_000):
                os.close(mounts.open_in_root(HERE, root, path, os.O_RDONLY))
        finally:
            other.kill()
            os.close(root)
