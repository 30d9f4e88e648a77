"""The supervisor of a template: it loads the image, forks whoever makes a container from it,
and reaps the containers' first processes."""

from __future__ import annotations

import os
import select
from typing import NoReturn

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_NAME,
    close_all_from,
    prctl,
)
from woodfrog.runtime import answering, templates
from woodfrog.runtime import channel as channels
from woodfrog.runtime import state as states
from woodfrog.runtime.answering import Request, Workers
from woodfrog.runtime.foreground import exit_code
from woodfrog.runtime.state import UnknownContainer
from woodfrog.runtime.templates import Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from woodfrog.runtime.channel import Channel


def start(
    place: Place, image: str, parents: Sequence[str], run: Callable[[list[str]], int]
) -> dict[str, object]:
    """Load an image in a process that stays; returns what it says of itself.

    `run` runs a command line there and returns its exit status. Raises what loading raises.
    """
    place.make()
    ours, theirs = channels.pair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        if os.fork():
            os._exit(0)
        _become_supervisor(place, image, parents, run, theirs)
    theirs.close()
    os.waitpid(pid, 0)
    try:
        told = ours.receive()
    except BaseException:
        place.remove()
        raise
    finally:
        ours.close()
    if told is None:
        place.remove()
        raise templates.gone(place)
    return told


def _become_supervisor(
    place: Place,
    image: str,
    parents: Sequence[str],
    run: Callable[[list[str]], int],
    channel: Channel,
) -> NoReturn:
    try:
        _leave_everything(channel.descriptors)
        from woodfrog.engine.template import Template

        template = Template(image, parents)
        templates.hold(template)
        answering.load_all()
        listening = answering.listen(place.door)
        found = states.start_time(os.getpid())
        information = {
            "name": place.name,
            "pid": os.getpid(),
            "startTime": found[1] if found else "",
            "image": os.path.join(image, "checkpoint.img"),
            "bytes": template.bytes,
            "created": states.now(),
        }
        place.write(information)
        channel.send(**information)
        channel.close()
        _Supervisor(place, listening, run).serve()
    except BaseException as error:
        try:
            channel.send_error(error)
        finally:
            os._exit(1)
    os._exit(0)


def _leave_everything(but: set[int]) -> None:
    """Be of no session, terminal or file of the command that we come from."""
    os.setsid()
    HERE.call(SYS.PRCTL, PR_SET_NAME, b"woodfrog-warm\0", 0, 0, 0)
    # Containers outlive those who make them, and then are ours to reap.
    prctl(HERE, PR_SET_CHILD_SUBREAPER, 1)
    close_all_from(HERE, 3, but)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for stdio in range(3):
        os.dup2(null, stdio, inheritable=False)
    os.close(null)


class _Supervisor:
    """Answers requests until the template is dropped and all its containers have ended."""

    def __init__(
        self, place: Place, listening: socket.socket, run: Callable[[list[str]], int]
    ) -> None:
        self._place = place
        self._listening = listening
        self._workers = Workers(run, may_decline=False)

    def serve(self) -> None:
        """Do so."""
        poll = select.poll()
        poll.register(self._workers.awake, select.POLLIN)
        poll.register(self._listening, select.POLLIN)
        asked = True
        while asked or _has_children():
            for descriptor, _ in poll.poll():
                if descriptor == self._workers.awake:
                    for pid, status in self._workers.reap():
                        _record(self._place.root, pid, exit_code(status))
                elif not self._answer():
                    poll.unregister(descriptor)
                    self._listening.close()
                    asked = False

    def _answer(self) -> bool:
        """Do what somebody asks for; tell whether the template is still there."""
        with Request(self._listening) as request:
            if request.message == templates.DROP:
                self._drop()
                return False
            if request.is_command:
                self._workers.fork(request, -1, self._listening.close)
        return True

    def _drop(self) -> None:
        template = templates.held()
        assert template
        template.drop()
        templates.hold(None)
        self._place.remove()


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _record(root: str, pid: int, status: int) -> None:
    """Note the exit status of a container's first process, for `wait`."""
    for container in states.all_containers(root):
        if container.state.get("pid") == pid:
            try:
                with container.lock():
                    container.reload()
                    container.state["exitStatus"] = status
                    container.save()
            except UnknownContainer:
                pass  # somebody has deleted it meanwhile
