"""The supervisor of a template: it loads the image, forks whoever makes a container from it,
and reaps the containers' first processes."""

from __future__ import annotations

import os
import select
import socket
import sys
from typing import NoReturn

from woodfrog.kernel.abi.x86_64 import SYS
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_NAME,
    close_all_from,
    prctl,
)
from woodfrog.kernel.signals import signals
from woodfrog.runtime import channel as channels
from woodfrog.runtime import jsontext, templates
from woodfrog.runtime import state as states
from woodfrog.runtime.foreground import exit_code
from woodfrog.runtime.state import UnknownContainer
from woodfrog.runtime.templates import Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from woodfrog.runtime.channel import Channel

# The request, the directory, and three standard descriptors.
_SENT = 5


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
        _import_all()
        listening = place.listen()
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


def _import_all() -> None:
    """Have all code that a restore may need in memory, once for all forks."""
    import gc
    import importlib
    import pkgutil

    import woodfrog

    for module in pkgutil.walk_packages(woodfrog.__path__, "woodfrog."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()


class _Supervisor:
    """Answers requests until the template is dropped and all its containers have ended."""

    def __init__(
        self, place: Place, listening: socket.socket, run: Callable[[list[str]], int]
    ) -> None:
        self._place = place
        self._listening = listening
        self._run = run
        self._workers: set[int] = set()
        self._awake, wakes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakes = wakes
        import signal

        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        signals.signal(signals.SIGCHLD, lambda number, frame: None)

    def serve(self) -> None:
        """Do so."""
        listening = self._listening
        poll = select.poll()
        poll.register(self._awake, select.POLLIN)
        poll.register(listening, select.POLLIN)
        alive = asked = True
        while alive or asked:
            for descriptor, _ in poll.poll():
                if descriptor == self._awake:
                    os.read(self._awake, 4096)
                elif not self._answer(listening):
                    poll.unregister(descriptor)
                    listening.close()
                    asked = False
            alive = self._reap()

    def _answer(self, listening: socket.socket) -> bool:
        """Do what somebody asks for; tell whether the template is still there."""
        connection, _ = listening.accept()
        with connection:
            try:
                message, descriptors, _, _ = socket.recv_fds(connection, 16, _SENT)
            except OSError:
                return True
            try:
                if message == templates.DROP:
                    self._drop()
                    return False
                if message == templates.RESTORE and len(descriptors) == _SENT:
                    self._fork_worker(connection, descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
        return True

    def _drop(self) -> None:
        template = templates.held()
        assert template
        template.drop()
        templates.hold(None)
        self._place.remove()

    def _fork_worker(self, connection: socket.socket, descriptors: list[int]) -> None:
        worker = os.fork()
        if worker:
            self._workers.add(worker)
            return
        status = 1
        try:
            self._become_worker(descriptors)
            connection.send(os.getpid().to_bytes(4, "little"))
            status = self._run(_request(descriptors[0]))
            sys.stdout.flush()
            connection.send(status.to_bytes(4, "little"))
        finally:
            os._exit(status)

    def _become_worker(self, descriptors: list[int]) -> None:
        """Have the descriptors, and the signals, of the command that has asked."""
        import signal

        signal.set_wakeup_fd(-1)
        signals.signal(signals.SIGCHLD, signals.SIG_DFL)
        os.close(self._awake)
        os.close(self._wakes)
        self._listening.close()
        os.fchdir(descriptors[1])
        for number, descriptor in enumerate(descriptors[2:]):
            os.dup2(descriptor, number, inheritable=True)

    def _reap(self) -> bool:
        """Take the exit statuses of those that have ended; tell whether anybody is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            if pid in self._workers:
                self._workers.remove(pid)
            else:
                _record(self._place.root, pid, exit_code(status))


def _request(descriptor: int) -> list[str]:
    """Take over environment and umask of the command that has asked; returns its words."""
    text = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    request = jsontext.parse(text.decode("utf-8", "surrogateescape"))
    os.environ.clear()
    os.environ.update(request["environ"])
    os.umask(request["umask"])
    words: list[str] = request["words"]
    return words


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
