"""Anycast addresses of an image."""

import pytest

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.resources.files import anycast
from woodfrog.resources.files.anycast import Anycast
from woodfrog.resources.files.socket_option_table import CAP_NET_ADMIN

SOUND = Anycast(address=bytes(15) + b"\5", device=b"lo", times=2)


def test_they_need_the_right_to_set_up_networks() -> None:
    anycast.refuse_wider([SOUND], CAP_NET_ADMIN)
    anycast.refuse_wider([], 0)
    with pytest.raises(UnsupportedResource, match="needs CAP_NET_ADMIN"):
        anycast.refuse_wider([SOUND], ~CAP_NET_ADMIN)


@pytest.mark.parametrize(
    "impossible",
    [
        Anycast(address=bytes(4), device=b"lo", times=1),
        Anycast(address=bytes(16), device=b"lo", times=0),
        Anycast(address=bytes(16), device=b"lo", times=1 << 20),
    ],
)
def test_impossible_ones_are_refused(impossible: Anycast) -> None:
    with pytest.raises(ImageError, match="impossible anycast address"):
        anycast.refuse_wider([impossible], CAP_NET_ADMIN)
