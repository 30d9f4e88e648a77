"""Births on request: a maker of clones has the supervisor, which does little else, fork.

It can't fork the init of a clone itself at a like price: every page that it has in common
with a child it has to copy, or to take back, when it writes to it next.
"""

from __future__ import annotations

import marshal
import os
import select
import socket

from woodfrog.errors import WoodfrogError
from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import pidfd_open
from woodfrog.kernel.signals import signals
from woodfrog.runtime import forking, init, mount_sources, spec, templates
from woodfrog.runtime.cgroups.entering import Doors
from woodfrog.runtime.channel import Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BIRTH = b"birth"
# What the request consists of, the directory, three standard descriptors, where to answer, and
# the init's end of the channel.
_FIRST = 8
MOST_DESCRIPTORS = 64  # and a descriptor for each namespace and cgroup
_PLAIN = (
    *("bundle", "rootfs", "overlay", "groups", "start_fifo", "hook_state", "new_keyring"),
    *("labels", "pivot"),
)


class Midwife:
    """Asks the supervisor behind a socket; its answers come at a socket of our own."""

    def __init__(self, supervisor: socket.socket, known: bytes | None = None) -> None:
        self._supervisor = supervisor
        # The text of a config that has been checked: it needn't be for the next clone.
        self.known = known
        self._answers, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._answered = select.poll()
        self._answered.register(self._answers, select.POLLIN)
        self._answered.register(supervisor, 0)  # its end
        self._last = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def again(self) -> Midwife:
        """Return one for a process forked from ours."""
        return Midwife(self._supervisor, self.known)

    def check(self, plan: init.Plan) -> None:
        """Refuse an init that needs more than what can be sent; it can do without debugging."""
        namespaces = spec.namespaces(plan.config)
        if plan.preserved or "user" in namespaces or mount_sources.maps_ids(plan.config):
            raise WoodfrogError(
                "a template makes no detached container with a user namespace, id-mapped mounts or"
                " descriptors to keep",
                hint="restore it without --detach and --count, or from its image",
            )

    def fork(self, plan: init.Plan, theirs: Channel, doors: Doors) -> tuple[int, int]:
        """Have an init made, like forking.fork_init does; returns (pid, pidfd).

        The pidfd is ours, and open until the next one is made.
        """
        umask = os.umask(0)
        os.umask(umask)
        asked = {key: getattr(plan, key) for key in _PLAIN}
        asked |= {
            "config": plan.config,
            "joined": list(plan.joined),
            "tasks": [path for _, path in doors.tasks],
            "has_group": doors.group >= 0,
            "environ": dict(os.environ),
            "umask": umask,
        }
        request = os.memfd_create("woodfrog-birth")
        here = os.open(".", os.O_PATH | os.O_DIRECTORY)
        try:
            os.write(request, marshal.dumps(asked))
            sent = [request, here, 0, 1, 2, self._theirs.fileno(), *theirs.ends]
            sent += plan.joined.values()
            sent += [descriptor for descriptor, _ in doors.tasks]
            sent += [doors.group] if doors.group >= 0 else []
            socket.send_fds(self._supervisor, [BIRTH], sent)
            self._answered.poll()
            answer, descriptors, _, _ = socket.recv_fds(self._answers, 4096, 1, socket.MSG_DONTWAIT)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            raise _failed("its supervisor has ended") from None
        finally:
            os.close(request)
            os.close(here)
        if not descriptors:
            raise _failed(answer.decode())
        pid, is_in_group = divmod(int.from_bytes(answer, "little"), 2)
        if is_in_group:
            doors.left = []
        os.dup2(descriptors[0], self._last, inheritable=False)
        os.close(descriptors[0])
        return pid, self._last


def _failed(why: str) -> WoodfrogError:
    return WoodfrogError(f"the template can't make a process: {why}")


def give(descriptors: list[int]) -> tuple[int, str]:
    """Fork what was asked for; returns its pid and the container's id."""
    answers = socket.socket(fileno=os.dup(descriptors[5]))
    with answers:
        try:
            asked = marshal.loads(os.pread(descriptors[0], os.fstat(descriptors[0]).st_size, 0))
            pid, in_group = _fork(asked, descriptors)
            pidfd = pidfd_open(HERE, pid)
        except Exception as error:
            answers.send(str(error).encode())
            return 0, ""
        try:
            answer = 2 * pid + int(in_group)
            socket.send_fds(answers, [answer.to_bytes(8, "little")], [pidfd])
        finally:
            os.close(pidfd)
    return pid, asked["hook_state"]["id"]


def _fork(asked: dict[str, Any], descriptors: list[int]) -> tuple[int, bool]:
    plan = init.Plan(asked["config"], "", "", {})
    for key in _PLAIN:
        setattr(plan, key, asked[key])
    plan.to_be_restored = True
    template = templates.held()
    assert template
    plan.stand_by = template.stand_by
    more = descriptors[_FIRST:]
    plan.joined = dict(zip(asked["joined"], more, strict=False))
    more = more[len(plan.joined) :]
    tasks = list(zip(more, asked["tasks"], strict=False))
    group = more[-1] if asked["has_group"] else -1
    doors = Doors(tasks, group, [""] if group >= 0 else [])
    wanted = spec.namespaces(plan.config).get("pid")
    # Here, since who is forked has yet to copy each page that it writes to, be it a count of uses.
    environ = asked["environ"] if asked["environ"] != dict(os.environ) else None
    pid = forking.fork_into_pid_namespace(wanted, plan.joined.get("pid", -1), doors.fork)
    if pid:
        return pid, not doors.left
    try:
        # The supervisor hears so of its children's ends. What it has open, init closes.
        signals.set_wakeup_fd(-1)
        signals.signal(signals.SIGCHLD, signals.SIG_DFL)
        if environ is not None:
            os.environ.clear()
            os.environ.update(environ)
        os.umask(asked["umask"])
        os.fchdir(descriptors[1])
        for number, descriptor in enumerate(descriptors[2:5]):
            os.dup2(descriptor, number, inheritable=True)
        init.run(plan, Channel(*descriptors[6:8]), doors.enter)
    finally:
        os._exit(1)
