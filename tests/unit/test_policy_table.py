"""Policies: where they may stand, which place wins, and a page that shows the table as it is."""

import os
from pathlib import Path

import pytest

from woodfrog.cli import flags, policies
from woodfrog.errors import UsageError

PAGE = Path(__file__).resolve().parents[2] / "docs/policies.md"


def settled(
    line: str = "", annotations: dict[str, str] | None = None, before: str = "", file: str = ""
) -> flags.Arguments:
    """Return the arguments of a checkpoint for which these things are said."""
    own = flags.parse(before.split(), (), who="help", rarer=lambda: policies.POLICIES)
    arguments = flags.parse(line.split(), policies.of("checkpoint"), who="checkpoint")
    arguments.common.policies = {key: own[key] for key in own.given}
    arguments.common.config = file
    policies.settle(arguments, annotations or {}, "checkpoint")
    return arguments


def test_the_nearest_place_wins(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        'compression = "none"\nsync = "none"\ntcp-close = true\next-unix-close = true\n'
    )
    annotations = {
        "org.woodfrog.sync": "full",
        "org.woodfrog.compression": "none",
        "io.other/name": "x",
    }
    found = settled(
        "--compression=zstd", annotations, "--compression none --sync=none --tcp-close=0", str(file)
    )
    assert found["compression"] == "zstd"  # the flag
    assert found["sync"] == "full"  # the annotation
    assert found["tcp_close"] is False  # before the command
    assert found["ext_unix_close"] is True  # the file
    assert found["file_locks"] is False  # the table


def test_a_file_of_crius_may_have_its_options(tmp_path: Path) -> None:
    file = tmp_path / "criu.conf"
    file.write_text("# for redis\ntcp-established\nghost-limit 2M\nlog-file=x.log\nsync none\n")
    annotations = {"org.criu.config": str(file)}
    found = settled("", annotations, "--tcp-established=false --sync=full", os.devnull)
    assert found["tcp_established"] is True
    assert found["ghost_limit"] == "2M"
    assert found["sync"] == "full"  # CRIU has no such option
    annotations["org.woodfrog.tcp-established"] = "false"
    assert settled("", annotations, file=os.devnull)["tcp_established"] is False


def test_gvisors_annotations_are_understood() -> None:
    gvisors = "dev.gvisor.internal.checkpoint."
    annotations = {f"{gvisors}compression": "flate-best-speed", f"{gvisors}path": "/x"}
    found = settled(annotations=annotations, file=os.devnull)
    assert found["compression"] == "flate-best-speed"
    annotations = {"org.woodfrog.compression": "zstd", **annotations}
    assert settled(annotations=annotations, file=os.devnull)["compression"] == "zstd"


def test_without_anything_said_the_table_holds() -> None:
    found = settled(file=os.devnull)
    assert [found[p.key] for p in policies.of("checkpoint")] == [
        p.default for p in policies.of("checkpoint")
    ]


@pytest.mark.parametrize(
    "name, value, message, hint",
    [
        (
            "org.woodfrog.tcp-clos",
            "true",
            "unknown annotation org.woodfrog.tcp-clos",
            "did you mean org.woodfrog.tcp-close?",
        ),
        (
            "org.woodfrog.xyz",
            "true",
            "unknown annotation org.woodfrog.xyz",
            "`woodfrog help policies` lists them all",
        ),
        (
            "org.woodfrog.sync",
            "ful",
            "annotation org.woodfrog.sync takes one of full, none, not 'ful'",
            "",
        ),
        (
            "org.woodfrog.tcp-close",
            "yes",
            "annotation org.woodfrog.tcp-close is a switch: it takes true or false, not 'yes'",
            "",
        ),
    ],
)
def test_mistakes_in_annotations_are_named(name: str, value: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        settled(annotations={name: value}, file=os.devnull)
    assert str(caught.value) == message
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    "text, message, hint",
    [
        ("tcp_close = true", "unknown policy tcp_close", "did you mean tcp-close?"),
        ("sync = 1", "sync takes one of full, none, not '1'", ""),
        ('tcp-close = "yes"', "tcp-close is a switch: it takes true or false, not 'yes'", ""),
        ("sync = full", "Invalid value (at line 1, column 8)", ""),
        ("[checkpoint]\nsync = 'none'", "unknown policy checkpoint", ""),
        ("sync = ['none']", "sync takes one of full, none, not", ""),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, text: str, message: str, hint: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        settled(file=str(file))
    assert str(caught.value).startswith(f"{file}: {message}")
    assert hint in caught.value.hint


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*: No such file"):
        settled(file=str(tmp_path / "none"))


def test_no_annotation_names_things_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    private = policies.Policy("run-it", "", "checkpoint", value="PATH", private=True)
    monkeypatch.setattr(policies, "POLICIES", (private,))
    assert settled(before="--run-it /bin/x", file=os.devnull)["run_it"] == "/bin/x"
    with pytest.raises(UsageError, match="this policy names"):
        settled(annotations={"org.woodfrog.run-it": "/bin/x"}, file=os.devnull)


def page() -> str:
    """Return docs/policies.md as the table would have it."""
    lines = [
        "# Policies",
        "",
        "This page is made from the table in `src/woodfrog/cli/policies.py`; a test compares them.",
        "",
        "What may be wished of a checkpoint or restore. Engines pass no options of their own, so"
        " each policy may stand in five places; the nearest wins:",
        "",
        "| where | like this |",
        "|---|---|",
        "| a flag of the command | `woodfrog checkpoint --compression=zstd --image-path=DIR ID` |",
        '| an annotation of the bundle | `"org.woodfrog.compression": "zstd"`; for a checkpoint'
        " those of the container's bundle count, for a restore those of the new container's."
        f" gVisor's names, `{policies.GVISORS}…`, are understood for"
        f" {', '.join(policies.GVISOR_NAMES)} |",
        "| an option of CRIU's, in a file of CRIU's | `tcp-established` in the file that the"
        f" annotation `{policies.CRIU_FILE}` names; understood are"
        f" {', '.join(policies.CRIU_NAMES)} |",
        "| before the command | `woodfrog --compression=zstd checkpoint …`; docker:"
        ' `"runtimeArgs": ["--compression=zstd"]` |',
        '| the file /etc/woodfrog/config.toml, or that of `--config=FILE` | `compression = "zstd"`'
        " |",
        "",
        "Switches are true or false. A name that nobody knows and a wrong value are errors wherever"
        " they stand.",
        "",
        "| policy | of | values | what |",
        "|---|---|---|---|",
    ]
    for policy in policies.POLICIES:
        values = " · ".join(
            f"**{choice}**" if choice == policy.default else choice for choice in policy.choices
        )
        values = values or policy.value or ("**false** · true")
        what = policy.help
        if policy.private:
            what += "; not as an annotation"
        row = f"`{policy.name}`", ", ".join(policy.commands), values, what
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def test_the_page_shows_the_table() -> None:
    if os.environ.get("WOODFROG_WRITE_SAMPLES") == "1":
        PAGE.write_text(page())
    assert PAGE.read_text() == page(), "WOODFROG_WRITE_SAMPLES=1 writes it anew"
