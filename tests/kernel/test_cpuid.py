"""CPUID as we read it is CPUID as a compiler's own header reads it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from needs import needs
from woodfrog.kernel import cpuid

pytestmark = needs("command gcc")

PROGRAM = r"""
#include <cpuid.h>
#include <stdio.h>
int main(void) {
    unsigned a, b, c, d;
    __cpuid_count(0, 0, a, b, c, d);
    printf("%.4s%.4s%.4s\n", (char *)&b, (char *)&d, (char *)&c);
    __cpuid_count(1, 0, a, b, c, d);
    unsigned xsave = c >> 27 & 1, low = 3, high = 0;
    if (xsave) __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    printf("%llu\n", (unsigned long long)high << 32 | low);
    __cpuid_count(0xd, 0, a, b, c, d);
    printf("%u\n", b);
    __builtin_cpu_init();
    printf("%d %d %d %d\n", !!__builtin_cpu_supports("sse4.2"), !!__builtin_cpu_supports("bmi2"),
           !!__builtin_cpu_supports("popcnt"), !!__builtin_cpu_supports("aes"));
    return 0;
}
"""


def test_we_read_what_a_compiler_reads(build: Callable[..., Path], tmp_path: Path) -> None:
    source = tmp_path / "cpu.c"
    source.write_text(PROGRAM)
    told = subprocess.run([build(source)], capture_output=True, text=True, check=True).stdout
    vendor, enabled, area, flags = told.splitlines()
    found = cpuid.read()
    assert found.vendor == vendor
    assert found.enabled == int(enabled)
    assert found.area == int(area)
    names = ("sse4_2", "bmi2", "popcnt", "aes")
    assert [str(int(name in found.features)) for name in names] == flags.split()
    assert all(one.offset + one.size <= found.area for one in found.states)


@pytest.mark.parametrize(
    "mask, names", [(0, []), (7, ["x87", "sse", "avx"]), (1 << 40, ["state 40"])]
)
def test_states_have_names(mask: int, names: list[str]) -> None:
    assert cpuid.state_names(mask) == names
