"""The interpreter's own file, as /proc/self/exe leads to it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from needs import needs

pytestmark = needs("root")
# Who executes it no more writes to what it executed, as a program of a container could.
_CODE = """
import os, sys
from woodfrog.kernel import own_program
if sys.argv[1] == "protected":
    assert own_program.make_read_only()
    assert own_program.make_read_only() is False  # it is of no mount that could be copied
    import json  # the interpreter goes on
    assert json.loads("[1]") == [1]
place = os.open("/proc/self/exe", os.O_PATH)
os.set_inheritable(place, True)
os.execv("/bin/sh", ["sh", "-c", f"echo overwritten > /proc/self/fd/{place}"])
"""


@pytest.mark.parametrize("how", ["protected", "plain"])
def test_nobody_writes_to_it_by_the_link(tmp_path: Path, how: str) -> None:
    own = tmp_path / "python"
    shutil.copyfile(Path(sys.executable).resolve(), own)
    own.chmod(0o755)
    before = own.read_bytes()
    places = [path for path in sys.path if path]
    done = subprocess.run(
        [own, "-S", "-c", _CODE, how],
        env={"PYTHONHOME": sys.base_prefix, "PYTHONPATH": ":".join(places)},
        capture_output=True,
        text=True,
        check=False,
    )
    if how == "plain":
        assert own.read_bytes() == b"overwritten\n", done.stderr  # so there is something to mend
    else:
        assert "Read-only file system" in done.stderr
        assert own.read_bytes() == before
