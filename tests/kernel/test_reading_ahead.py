"""What is read of a held process while other things are looked at."""

import sys

from needs import needs
from started import UNSHARE, child_of, line, started
from woodfrog.engine.reading_ahead import MappingsAhead
from woodfrog.kernel.pagemap import Pagemap
from woodfrog.remote.hold import held

HOLDS = "one = bytearray(8 << 20); one[:] = b'x' * len(one); print('ready', flush=True); input()"


@needs("root")
def test_pages_that_are_walked_over_are_those_that_there_are() -> None:
    with started(*UNSHARE, sys.executable, "-c", HOLDS) as unshare:
        assert line(unshare) == "ready"
        init = child_of(unshare.pid)
        with held(init) as tree:
            [one] = tree.processes
            MappingsAhead(tree.processes, (), may_be_late=False).walk()
            assert not one.walked
            ahead = MappingsAhead(tree.processes, {init}, may_be_late=False)
            ahead.walk()
            mappings = [each for each in ahead.of(one) if not each.shared]
            large = {
                (each.start, each.end) for each in mappings if each.end - each.start >= 1 << 20
            }
            assert one.walked.keys() == large
            with Pagemap(init) as pagemap:
                for (start, end), walk in one.walked.items():
                    assert walk.own == pagemap.own_pages(start, end)
                    assert (walk.unwritten, walk.guards) == ([], [])
            pages = [end - start for walk in one.walked.values() for start, end in walk.own]
            assert sum(pages) >= 8 << 20
