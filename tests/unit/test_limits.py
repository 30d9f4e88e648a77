import os
import resource

from woodfrog.resources import limits


def test_limits_in_force_are_those_that_getrlimit_tells() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    try:
        found = limits.in_force(os.getpid())
        asked = [resource.getrlimit(number) for number in range(len(limits.NAMES))]
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    assert found == [(one & limits.NONE, other & limits.NONE) for one, other in asked]
    assert found[resource.RLIMIT_CORE][0] == 0
