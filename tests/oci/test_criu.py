"""Standing in for CRIU before engines that ask for its version: a packet, and its answer."""

import socket
import subprocess

import pytest

from containers import COMMAND, Woodfrog
from needs import needs

pytestmark = needs("root")

VERSION = bytes.fromhex("08 0a")
FEATURE_CHECK_OF_MEMORY_TRACKING = bytes.fromhex("08 09 2a 02 08 01")
DUMP = bytes.fromhex("08 01 12 02 08 05")


def ask(*requests: bytes) -> list[bytes]:
    """Send requests to one process; it has to end well when we hang up."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [*COMMAND, "criu", "swrk", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    theirs.close()
    answers = []
    with ours:
        for request in requests:
            ours.send(request)
            answers.append(ours.recv(1000))
    assert process.wait(60) == 0
    return answers


def test_the_version_is_new_enough_for_pods() -> None:
    # Type, success, and in the tenth field 3.19 as two numbers.
    assert ask(VERSION) == [bytes.fromhex("08 0a 10 01 52 04 08 03 10 13")]


def test_no_feature_is_there() -> None:
    assert ask(FEATURE_CHECK_OF_MEMORY_TRACKING, VERSION)[0] == bytes.fromhex("08 09 10 01 42 00")


@pytest.mark.parametrize("request_", [DUMP, b"\0", b"\xff" * 1000])
def test_anything_else_is_refused(request_: bytes) -> None:
    (answer,) = ask(request_)
    assert answer[0] == 8
    assert answer[2:4] == b"\x10\x00"
    assert b"woodfrog in CRIU's place" in answer


def test_it_is_no_command_for_people(woodfrog: Woodfrog) -> None:
    assert "criu dump" in woodfrog("criu", "dump", "1", status=1).stderr
