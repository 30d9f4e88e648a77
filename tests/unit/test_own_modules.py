"""Who has gone to a container's files loads no module from there, and no codec."""

import codecs
import importlib
import sys
import threading

import pytest

from woodfrog.kernel import own_modules


def test_a_thread_loads_nothing_until_it_may_again() -> None:
    done = []

    def go() -> None:
        own_modules.load_no_more()
        try:
            with pytest.raises(ImportError, match="colorsys must have been loaded"):
                importlib.import_module("colorsys")
            with pytest.raises(LookupError, match="cp1140"):
                codecs.lookup("cp1140")
            # What the interpreter brings along comes from no file.
            assert importlib.import_module("builtins")
        finally:
            own_modules.load_again()
        done.append(importlib.import_module("colorsys"))

    sys.modules.pop("colorsys", None)
    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    assert done
