"""The supervisor of a template: it loads the image, has makers make containers from it, forks
their first processes, and reaps them."""

from __future__ import annotations

import gc
import os
import select
import socket
from typing import NoReturn

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_NAME,
    close_all_from,
    prctl,
)
from woodfrog.runtime import answering, asking, births, template_maker, templates
from woodfrog.runtime import channel as channels
from woodfrog.runtime import state as states
from woodfrog.runtime.answering import Request, Workers
from woodfrog.runtime.foreground import exit_code
from woodfrog.runtime.state import Container, UnknownContainer
from woodfrog.runtime.templates import Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from woodfrog.runtime.channel import Channel


def start(
    place: Place,
    image: str,
    parents: Sequence[str],
    run: Callable[[list[str]], int],
    load: Callable[[], None],
) -> dict[str, object]:
    """Load an image in a process that stays; returns what it says of itself.

    `run` runs a command line there and returns its exit status; `load` imports the code that it
    needs as a rule, and no more, since containers' first processes are forks of that process.
    Raises what loading raises.
    """
    place.make()
    ours, theirs = channels.pair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        if os.fork():
            os._exit(0)
        _become_supervisor(place, image, parents, run, load, theirs)
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
    load: Callable[[], None],
    channel: Channel,
) -> NoReturn:
    try:
        _leave_everything(channel.descriptors)
        from woodfrog.engine import forked_stub
        from woodfrog.engine.template import Template

        template = Template(image, parents)
        templates.hold(template)
        load()
        forked_stub.prepare(template)
        gc.collect()
        gc.freeze()
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
        self._run = run
        self._attached = Workers(run)
        # Makers by the descriptors of their sockets, their pids, and those that have nothing to do.
        self._makers: dict[int, socket.socket] = {}
        self._pids: dict[int, int] = {}
        self._idle: list[int] = []
        self._born: dict[int, str] = {}  # the ids of containers, by their first processes
        self._is_offered = True
        self._poll = select.poll()

    def serve(self) -> None:
        """Do so."""
        self._poll.register(self._attached.awake, select.POLLIN)
        self._poll.register(self._listening, select.POLLIN)
        self._idle.append(self._add_maker())
        while self._is_offered or _has_children():
            for descriptor, _ in self._poll.poll():
                if descriptor == self._attached.awake:
                    self._reap()
                elif descriptor in self._makers:
                    self._listen_to(descriptor)
                elif self._is_offered:
                    self._answer()

    def _answer(self) -> None:
        """Do what somebody asks for."""
        with Request(self._listening) as request:
            if request.message == templates.DROP:
                self._drop(request.connection.dup())
            elif request.is_command:
                self._attached.fork(request, self._leave_others)
            elif request.asks_for(asking.DETACHED):
                self._pass_on([request.connection.fileno(), *request.descriptors])

    def _drop(self, connection: socket.socket) -> None:
        """Make no more containers; who asks waits until those that are being made are ready."""
        self._dropping = connection
        self._is_offered = False
        self._place.remove()
        self._poll.unregister(self._listening)
        self._listening.close()
        for number in list(self._idle):
            pid = self._pids[number]
            self._end_maker(number)
            os.waitpid(pid, 0)
        self._let_go()

    def _let_go(self) -> None:
        """Let go of the memory, if nobody needs it."""
        template = templates.held()
        if template and not self._is_offered and not self._makers:
            template.drop()
            templates.hold(None)
            self._reap()
            if not _has_children():
                os._exit(0)
            self._dropping.close()

    def _pass_on(self, descriptors: list[int]) -> None:
        """Have a maker do it that has nothing to do."""
        while self._idle:
            number = self._idle.pop()
            try:
                socket.send_fds(self._makers[number], [asking.DETACHED], descriptors)
                return
            except OSError:
                self._end_maker(number)  # it has been killed
        number = self._add_maker()
        socket.send_fds(self._makers[number], [asking.DETACHED], descriptors)

    def _add_maker(self) -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            try:
                self._leave()
                ours.close()
                template_maker.serve(theirs, self._run, self._attached.code)
            finally:
                os._exit(1)
        theirs.close()
        self._makers[ours.fileno()], self._pids[ours.fileno()] = ours, pid
        self._poll.register(ours, select.POLLIN)
        return ours.fileno()

    def _end_maker(self, number: int) -> None:
        """Have a maker end when it has done what it does."""
        if number in self._idle:
            self._idle.remove(number)
        self._poll.unregister(number)
        self._makers.pop(number).close()
        del self._pids[number]

    def _listen_to(self, number: int) -> None:
        """Do what a maker asks for, or note that it has done its work, or has ended."""
        try:
            message, descriptors, _, _ = socket.recv_fds(
                self._makers[number], 16, births.MOST_DESCRIPTORS
            )
        except ConnectionResetError:
            message, descriptors = b"", []
        if message == births.BIRTH:
            pid, id = births.give(descriptors)
            if pid:
                self._born[pid] = id
            for descriptor in descriptors:
                os.close(descriptor)
            return
        if message == template_maker.IDLE:
            self._idle.append(number)
        enough = len(self._idle) > len(os.sched_getaffinity(0))
        if message != template_maker.IDLE or enough or not self._is_offered:
            self._end_maker(number)
            self._let_go()

    def _leave(self) -> None:
        """In a fork: have nothing of the supervisor's."""
        self._attached.leave()
        self._leave_others()

    def _leave_others(self) -> None:
        self._listening.close()
        for connection in self._makers.values():
            connection.close()

    def _reap(self) -> None:
        """Take the exit statuses of those that have ended."""
        for pid, status in self._attached.reap():
            # Of makers, and of orphans that weren't born here, no container is told.
            _record(self._place.root, pid, exit_code(status), self._born.pop(pid, ""))


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _record(root: str, pid: int, status: int, id: str) -> None:
    """Note the exit status of a container's first process, for `wait`."""
    for container in _containers(root, id):
        if container.state.get("pid") == pid:
            try:
                with container.lock():
                    container.reload()
                    container.state["exitStatus"] = status
                    container.save()
            except UnknownContainer:
                pass  # somebody has deleted it meanwhile


def _containers(root: str, id: str) -> list[Container]:
    """Return the container of this id, or all if the id isn't known."""
    if not id:
        return states.all_containers(root)
    try:
        return [Container.load(root, id)]
    except UnknownContainer:
        return []
