"""What `docker woodfrog` believes of an image, which may be of anybody's making."""

import json
from pathlib import Path
from typing import Any

import pytest

from woodfrog.docker.checkpoints import Checkpoint
from woodfrog.errors import ImageError
from woodfrog.image.container_file import Writer


def checkpoint(directory: Path, *records: Any) -> Checkpoint:
    """Return what an image of these records says."""
    with Writer(str(directory), compression="none", sync="none", replace=False) as image:
        for record in records:
            image.add(record)
        image.seal()
    return Checkpoint(str(directory), None)


def test_a_container_is_described(tmp_path: Path) -> None:
    config = {
        "process": {"terminal": True, "args": ["/sbin/docker-init", "--", "web", "-x"]},
        "mounts": [
            {"destination": "/proc", "type": "proc"},
            {"destination": "/etc/hosts", "type": "bind"},
            {"destination": "/data", "type": "bind", "source": "/srv"},
        ],
    }
    record = {"kind": "container", "config": json.dumps(config).encode()}
    found = checkpoint(tmp_path, record, {"kind": "layer"})
    assert found.has_terminal
    assert found.has_init
    assert found.has_files
    assert found.command == ["web", "-x"]
    assert found.volumes == {"/data": "/srv"}


@pytest.mark.parametrize(
    "config", [b"", b"[]", b"{}", b'{"process": 5, "mounts": [1, {}]}', b'{"process": {"args": 5}}']
)
def test_a_config_that_says_nothing_is_taken_so(tmp_path: Path, config: bytes) -> None:
    found = checkpoint(tmp_path, {"kind": "container", "config": config})
    assert (found.has_terminal, found.has_init, found.has_files) == (False, False, False)
    assert (found.command, found.volumes) == ([], {})


@pytest.mark.parametrize(
    "record", [{"kind": "container", "config": b"{"}, {"kind": "container"}, {}]
)
def test_a_config_that_is_none_is_refused(tmp_path: Path, record: dict[str, object]) -> None:
    with pytest.raises(ImageError, match="no readable configuration"):
        _ = checkpoint(tmp_path, record).command
