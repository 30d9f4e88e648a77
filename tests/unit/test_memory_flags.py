"""What smaps of kernels and CPUs that are not at hand would tell of mappings."""

import pytest

from woodfrog.errors import UnsupportedResource
from woodfrog.kernel.procfs.maps import Mapping, parse_smaps
from woodfrog.resources import memory_flags

HEAD = b"7f0000000000-7f0000001000 %s 00000000 00:00 0 %s\n"


def mapping(
    flags: str, *, name: bytes = b"", permissions: bytes = b"rw-p", key: int | None = None
) -> Mapping:
    keys = [] if key is None else [b"ProtectionKey:  %9d\n" % key]
    lines = [HEAD % (permissions, name), *keys, b"VmFlags: %s\n" % flags.encode()]
    (found,) = parse_smaps(b"".join(lines))
    return found


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (mapping("rd wr", key=3), "a protection key"),
        (mapping("rd wr ss", key=0), "a shadow stack"),
        (mapping("rd wr sf"), "MAP_SYNC"),
        (mapping("rd wr sh", name=b"/secretmem (deleted)"), "secret memory"),
        (mapping("rd wr um"), "userfaultfd"),
    ],
)
def test_what_cannot_be_made_again_is_refused(found: Mapping, words: str) -> None:
    with pytest.raises(UnsupportedResource, match=words):
        memory_flags.refuse(found, noted=False)


def test_what_may_only_be_executed_has_a_key_of_the_kernels_own() -> None:
    memory_flags.refuse(mapping("ex mr mw me", permissions=b"--xp", key=1), noted=False)
    memory_flags.refuse(mapping("rd wr", key=0), noted=False)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        (b"[anon:frogs]", b"frogs"),
        (b"[anon_shmem:frogs and toads]", b"frogs and toads"),
        (b"[heap]", b""),
        (b"/srv/[anon:x]", b""),
        (b"", b""),
    ],
)
def test_names_of_anonymous_memory_are_those_that_programs_gave(name: bytes, given: bytes) -> None:
    assert memory_flags.given_name(name) == given


def test_memory_is_locked_at_once_or_as_it_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    for shown, plain in ((True, False), (False, None)):
        monkeypatch.setattr(
            "woodfrog.kernel.features.shows_lock_on_fault", lambda shown=shown: shown
        )
        assert memory_flags.locks_on_fault(mapping("rd lo lf")) is True
        assert memory_flags.locks_on_fault(mapping("rd lo")) is plain
        assert memory_flags.locks_on_fault(mapping("rd")) is None
