"""The kernel families of 64-bit ARM under QEMU, with the programs that `make aarch64` built."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from test_native import ROOT, describe
from test_native import run as run_here

from yocobit import Engine
from yocobit.pretrained import TINY

PROGRAMS = ROOT / "build/aarch64/tests/native"
TEXT = "Four score and seven years ago our fathers brought forth on this continent a nation. " * 3
N_GENERATED = 24

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (PROGRAMS / "generate").exists() or shutil.which("qemu-aarch64") is None,
        reason="run make aarch64",
    ),
]


def run(cpu: str, name: str, *arguments: object) -> list[str]:
    """Run a program on an emulated CPU and return the lines of its output."""
    command = ["qemu-aarch64", "-cpu", cpu, PROGRAMS / name, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.splitlines()


def families(lines: list[str]) -> list[str]:
    """The kernel families of an output, without those that exist in tests only."""
    names = [line.split(":")[0] for line in lines]
    return [name for name in names if not re.match("overriding|.*_emulated", name)]


@pytest.fixture(scope="module")
def tiny() -> Engine:
    """The packaged model."""
    return Engine.load(TINY)


def test_every_family_satisfies_the_contracts_and_the_checksums_of_all_cpus():
    assert families(run("max", "kernel_equality")) == ["scalar", "neon", "i8mm"]


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ("cortex-a72", ["scalar"]),  # neither sdot nor smmla
        ("neoverse-n1", ["scalar", "neon"]),  # no smmla
        ("max", ["scalar", "neon", "i8mm"]),
    ],
)
def test_the_families_are_those_of_the_cpu(tiny, cpu, expected, tmp_path):
    model = describe(tiny.model, tmp_path / "description")

    assert families(run(cpu, "generate", model, "f32", 1, 1)) == expected


@pytest.mark.parametrize("cache", ["f32", "int8"])
def test_tokens_and_the_bits_of_all_logits_are_those_of_x86(tiny, cache, tmp_path):
    model = describe(tiny.model, tmp_path / "description")
    prompt = tiny.tokenizer.encode(TEXT).ids
    session = tiny.session(len(prompt) + N_GENERATED, cache)
    expected = [int(session.feed(prompt).argmax())]
    while len(expected) < N_GENERATED:
        expected.append(int(session.step(expected[-1]).argmax()))

    emulated = run("max", "generate", model, cache, N_GENERATED, *prompt)
    here = run_here("generate", model, cache, N_GENERATED, *prompt).splitlines()

    assert len(prompt) > 32
    generated = {line.split(": ")[1] for line in (*here, *emulated)}
    assert len(generated) == 1
    assert [int(token) for token in generated.pop().split()[:-1]] == expected
