"""Telling the options of `docker create` from the image and its command."""

import pytest

from woodfrog.docker.options import split

HELP = """
Options:
      --add-host list                    Add a custom mapping
                                         (host:ip), --not-an option
  -e, --env list                         Set environment variables
  -i, --interactive                      Keep STDIN open
      --memory-swap bytes                Swap limit
  -p, --publish list
      --rm                               Remove it
  -t, --tty                              Allocate a pseudo-TTY
      --from=CONTAINER:NAME|DIR  the checkpoint
"""


@pytest.mark.parametrize(
    "line, names, arguments",
    [
        ("box", [], ["box"]),
        ("-it box sh -c x", ["interactive", "tty"], ["box", "sh", "-c", "x"]),
        ("-itp 80:80 box -v", ["interactive", "tty", "publish"], ["box", "-v"]),
        ("-itp80:80 box", ["interactive", "tty", "publish"], ["box"]),
        ("-e A=b --env=C=d --rm box", ["env", "env", "rm"], ["box"]),
        ("--rm=false --add-host a:b box sh", ["rm", "add-host"], ["box", "sh"]),
        ("--memory-swap -1 box", ["memory-swap"], ["box"]),
        ("-i=true -- box --rm", ["interactive"], ["box", "--rm"]),
        ("--unheard-of box", ["unheard-of"], ["box"]),
        ("--publish", ["publish"], []),
    ],
)
def test_options_end_where_the_image_is(line: str, names: list[str], arguments: list[str]) -> None:
    given = split(line.split(), HELP)
    assert [name for option in given.options for name in option.names] == names
    assert given.arguments == arguments
    rest = [word for word in line.split() if word != "--"]
    assert given.words() + given.arguments == rest


def test_an_option_of_ours_is_taken_out() -> None:
    given = split(["-i", "--from", "web:one", "--rm", "--from=/x", "box"], HELP)
    assert given.take("from") == ["web:one", "/x"]
    assert given.words() == ["-i", "--rm"]
    assert given.has("rm")
    assert not given.has("from")
