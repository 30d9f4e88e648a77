"""woodfrog cpu-features"""

from __future__ import annotations

import sys

from woodfrog.cli.flags import Arguments, Command, Flag


def run(arguments: Arguments) -> None:
    """Print what this CPU offers."""
    from woodfrog.kernel import cpuid

    cpu = cpuid.read()
    if not arguments["json"]:
        sys.stdout.write(" ".join(cpu.features) + "\n")
        return
    from msgspec.structs import asdict

    from woodfrog.runtime import jsontext

    states = [{"name": cpuid.state_names(1 << one.number)[0], **asdict(one)} for one in cpu.states]
    sys.stdout.write(jsontext.write(asdict(cpu) | {"states": states}, 2) + "\n")


COMMAND = Command(
    "cpu-features",
    "",
    "Show which instructions this CPU offers programs, by the names of /proc/cpuinfo. An image\n"
    "records them; `restore` compares (--cpu-check).",
    ("woodfrog cpu-features", "woodfrog cpu-features --json   # with its registers' states"),
    (Flag("json", "also the maker, the model, and what XSAVE keeps"),),
    run,
    least=0,
    most=0,
)
