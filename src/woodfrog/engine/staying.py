"""What a process of ours does that stays when the command ends."""

import os
import resource

from woodfrog.kernel.caller import HERE
from woodfrog.kernel.process import close_all_from
from woodfrog.kernel.signals import signals


def leave_everything(but: set[int]) -> None:
    """Be of no session, directory, terminal or file of the command that we come from."""
    os.setsid()
    os.chdir("/")
    for number in (signals.SIGINT, signals.SIGTERM, signals.SIGHUP, signals.SIGPIPE):
        signals.signal(number, signals.SIG_IGN)
    close_all_from(HERE, 3, but)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for stdio in range(3):
        os.dup2(null, stdio, inheritable=False)
    # Each process that is forked meanwhile may be one descriptor more.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
