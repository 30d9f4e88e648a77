"""Settings are read through files that were opened before."""

import subprocess

import pytest

from woodfrog.resources import namespaces, sysctls
from woodfrog.resources.sysctls import Opened, Usual

TTL = "net/ipv4/ip_default_ttl"
SCRIPT = """
echo there; read go
echo 99 > /proc/sys/net/ipv4/ip_default_ttl
echo set; read go
exec unshare --net sh -c 'echo gone; read go'
"""


@pytest.mark.parametrize("short", [256, 4])
def test_opened_settings_are_those_of_now_and_of_where_the_process_is(
    short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysctls, "_SHORT", short)
    new = Usual()
    paths = new.paths("network")
    assert TTL in paths
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def read() -> dict[str, bytes]:
            with namespaces.inside(process.pid, "net"):
                return dict(opened.read(process.pid, paths))

        assert process.stdout.readline() == "there\n"
        opened = Opened(process.pid, new)
        try:
            first = read()
            assert first == {path: new.settings[path] for path in paths}
            for told, ttl in (("set\n", b"99"), ("gone\n", first[TTL])):
                process.stdin.write("\n")
                assert process.stdout.readline() == told
                assert read() == first | {TTL: ttl}
        finally:
            opened.close()
            process.stdin.close()
