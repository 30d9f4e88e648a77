"""What programs have in common that are told to change, or to look: they wait, and say so."""

import os
import time
import traceback
from collections.abc import Callable, Mapping


def wait_for(path: str) -> str:
    """Return what is in a file of the work directory when it is there, and take it away."""
    while not os.path.exists(path):
        time.sleep(0.01)
    with open(path) as found:
        text = found.read()
    os.unlink(path)
    return text


def obey(changes: Mapping[str, Callable[[], None]], check: Callable[[], None]) -> None:
    """Wait to be told; make a change and wait to be set back, or look whether all is as it was."""
    os.close(os.open("/work/ready", os.O_CREAT | os.O_WRONLY))
    told = wait_for("/work/change")
    if told != "check":
        changes[told]()
        with open("/work/changed", "w"):
            pass
        wait_for("/work/never")
    with open("/work/out", "w") as out:
        try:
            check()
            out.write("ok\n")
        except Exception:
            traceback.print_exc(file=out)
