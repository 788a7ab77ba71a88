"""The C++ test programs of tests/native, as `make setup` built them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kernel_families import KERNELS

from yocobit.config import ModelConfig, preset
from yocobit.packing import PackedModel
from yocobit.packing.file_format import DTYPES
from yocobit.packing.stored_parameters import stored_parameters, tensors_of
from yocobit.packing.writer import write_model

ROOT = Path(__file__).resolve().parents[2]
STACKS = {
    "yoco-gret": ("retention", "retention", "cross", "cross"),
    "yoco-swa": ("window", "window", "cross", "cross"),
    "yoco-gmu": ("retention", "window", "cross", "gmu"),
    "transformer": ("full", "full"),
    "yoco-gate": ("gate", "window", "cross", "cross"),
}


def run(name: str, *arguments: object) -> str:
    """Run a program of tests/native and return its output; fail with it on an error."""
    built = sorted(ROOT.glob(f"build/cp*/tests/native/{name}"), key=lambda p: p.stat().st_mtime)
    if not built:
        pytest.skip(f"{name} is not built; run make setup")
    ended = subprocess.run([built[-1], *map(str, arguments)], capture_output=True, text=True)
    if ended.returncode == 77:
        pytest.skip("this system has no seccomp")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def random_model(config: ModelConfig, head: str, directory: Path) -> PackedModel:
    """Pack a model with random small weights."""
    rng = np.random.default_rng(seed=0)
    parameters = stored_parameters(config, head=head)
    tensors = (
        (name, rng.integers(0, 2, shape).astype(DTYPES[dtype]) + np.array(1, DTYPES[dtype]))
        for name, (dtype, shape) in tensors_of(parameters).items()
    )
    return write_model(directory / "model", config, parameters, tensors)


def describe(model: PackedModel, file: Path) -> Path:
    """Write a description of the model for count_calls."""
    config = model.config
    fields = [
        *(config.vocab_size, config.d_model, config.d_ff, config.n_heads, config.n_kv_heads),
        *(config.n_self_heads, config.n_self_kv_heads, config.window, len(config.layers)),
        *config.layers,
        config.ffn,
        *map(int, (config.sub_norm, config.tie_embeddings, config.scale_embedding)),
        *(config.retention_rope, config.window_rope, config.full_rope, config.cross_rope),
        *(config.cross_attention, config.cross_positions, config.rope_theta, config.norm_eps),
        *(config.n_experts, config.n_active_experts),
    ]
    lines = [str(model.file), " ".join(map(str, fields))]
    formats = {name: stored.format.name for name, stored in model.parameters.items()}
    for name, tensor in model.tensors.items():
        entry = (name, tensor.dtype, formats.get(name, "-"), tensor.begin, tensor.end)
        lines.append(" ".join(map(str, (*entry, len(tensor.shape), *tensor.shape))))
    file.write_text("\n".join(lines))
    return file


FORMATS = [("ternary", "int8", "f32"), ("sign", "int4", "f16"), ("dense", "int8", "int8")]
# Each stack with one of FORMATS; the others are slow.
DECODED = [
    pytest.param(stack, *formats, marks=[pytest.mark.slow] * (i % 3 != j))
    for i, stack in enumerate(STACKS)
    for j, formats in enumerate(FORMATS)
]


@pytest.mark.parametrize(("stack", "weights", "head", "cache"), DECODED)
def test_decoding_makes_no_allocation_and_no_system_call(stack, weights, head, cache, tmp_path):
    config = preset("nano").replace(layers=STACKS[stack], weights=weights)
    description = describe(random_model(config, head, tmp_path), tmp_path / "description")

    for threads in (1, 2, 3):
        assert "0 allocations" in run("count_calls", description, threads, cache)


@pytest.mark.parametrize("weights", ["ternary", "sign_g128"])
def test_decoding_with_experts_makes_no_allocation_and_no_system_call(weights, tmp_path):
    config = preset("nano").replace(weights=weights, ffn="moe", n_experts=12, n_active_experts=3)
    description = describe(random_model(config, "int8", tmp_path), tmp_path / "description")

    for threads in (1, 2, 3):
        assert "0 allocations" in run("count_calls", description, threads, "f16")


@pytest.mark.parametrize(("attention", "cache"), [("index:128", "int4"), ("index:256", "f16")])
def test_block_selection_makes_no_allocation_and_no_system_call(attention, cache, tmp_path):
    config = preset("nano").attending(attention)
    description = describe(random_model(config, "int8", tmp_path), tmp_path / "description")

    for threads in (1, 2, 3):
        assert "0 allocations" in run("count_calls", description, threads, cache)


def test_every_family_satisfies_the_contracts_and_the_checksums_of_all_cpus():
    printed = run("kernel_equality")

    assert [line.split(":")[0] for line in printed.splitlines()] == [
        *KERNELS,
        "overriding",
        "overriding training",
    ]


def test_thread_pools_of_all_sizes_compute_every_item_once():
    assert "good" in run("thread_pool_stress")


def test_threads_that_the_system_refuses_are_one_error(tmp_path):
    path = random_model(preset("nano"), "int8", tmp_path).path
    code = (
        "import resource, yocobit\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"  # for the threads' stacks
        f"yocobit.Engine.load({str(path)!r}, threads=1024)"
    )

    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert "ConfigError: threads must be at most" in ended.stderr
    assert ended.returncode == 1
