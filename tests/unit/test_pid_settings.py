"""Settings of pid namespaces in an image are none but those that such a namespace has."""

import pytest

from woodfrog.errors import ImageError, UnsupportedResource
from woodfrog.kernel.capability import CAP_SYS_ADMIN
from woodfrog.resources import pid_settings

ADMIN = 1 << CAP_SYS_ADMIN
LOWER, NO_PROGRAMS = ("kernel/pid_max", b"5000"), ("vm/memfd_noexec", b"2")


@pytest.mark.parametrize(
    "setting",
    [
        ("kernel/threads-max", b"1"),
        ("kernel/../vm/memfd_noexec", b"1"),
        ("kernel/pid_max", b""),
        ("kernel/pid_max", b"-1"),
        ("kernel/pid_max", b"5000\n"),
        ("vm/memfd_noexec", b"1 1"),
    ],
)
def test_no_other_settings_pass(setting: tuple[str, bytes]) -> None:
    pid_settings.check([LOWER, NO_PROGRAMS])
    with pytest.raises(ImageError):
        pid_settings.check([LOWER, setting])


def test_who_joins_a_pid_namespace_does_not_change_it() -> None:
    pid_settings.refuse_wider([], (), 0)
    pid_settings.refuse_wider([LOWER], ("pid",), 0)
    pid_settings.refuse_wider([LOWER, NO_PROGRAMS], ("pid",), ADMIN)
    with pytest.raises(UnsupportedResource, match="joins a namespace"):
        pid_settings.refuse_wider([LOWER], ("ipc", "network"), ADMIN)
    with pytest.raises(UnsupportedResource, match="CAP_SYS_ADMIN"):
        pid_settings.refuse_wider([LOWER, NO_PROGRAMS], ("pid",), 0)
