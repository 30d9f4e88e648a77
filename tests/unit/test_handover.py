"""An image that is handed to a restore by a ticket."""

from pathlib import Path

import pytest

from woodfrog.errors import ImageError
from woodfrog.runtime import handover


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of the links to images."""
    monkeypatch.setattr("woodfrog.runtime.handover.PLACE", str(tmp_path / "place"))
    return tmp_path / "place"


def test_a_ticket_is_good_for_one_restore(tmp_path: Path, place: Path) -> None:
    ticket = handover.Ticket("/srv/image", str(tmp_path))
    at = tmp_path / ticket.name
    assert not ticket.is_taken()
    assert place.stat().st_mode & 0o7777 == 0o700
    copy = tmp_path / "copy"
    copy.mkdir()
    secret = (at / handover.FILE).read_bytes()
    (copy / handover.FILE).write_bytes(secret)
    assert handover.redeemed(str(copy)) == "/srv/image"
    assert ticket.is_taken()
    with pytest.raises(ImageError, match="no longer valid"):
        handover.redeemed(str(copy))
    ticket.withdraw()
    ticket.withdraw()
    assert list(place.iterdir()) == []
    assert not at.exists()


@pytest.mark.parametrize("text", ["", "..", "0" * 31, "0" * 32, "0" * 33, "../" + "0" * 29, "/etc"])
def test_a_ticket_of_ones_own_making_is_worth_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / handover.FILE).write_text(text)
    with pytest.raises(ImageError, match="no longer valid"):
        handover.redeemed(str(tmp_path))


def test_without_a_ticket_the_directory_is_meant(tmp_path: Path) -> None:
    assert handover.redeemed(str(tmp_path)) == str(tmp_path)
