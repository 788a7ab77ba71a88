"""One step: batches, clipping, activation checkpointing and compilation.

Letters: B batch   T positions
"""

import weakref
from functools import partial

import corpora
import pytest
import torch
from rich.console import Console
from torch._inductor import config as inductor_config
from torch._inductor.exc import InductorError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_runs import assert_same_run, records, run

from yocobit.config import preset
from yocobit.data.corpus import Corpus, prepare
from yocobit.model import Decoder
from yocobit.packing import checkpoints
from yocobit.training import checkpoint, loop, setup
from yocobit.training.backend import CompilationError, compiled
from yocobit.training.batch import Batch
from yocobit.training.config import load as load_config
from yocobit.training.optim import Optimizers
from yocobit.training.step import Objective


def test_accumulation_equals_a_larger_batch_to_rounding(toml, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # float32 matmuls
    run(toml, tmp_path / "big", "run.steps=1", "optim.batch_size=6")
    run(toml, tmp_path / "parts", "run.steps=1", "optim.batch_size=2", "optim.accumulation=3")

    (big,), (parts,) = records(tmp_path / "big"), records(tmp_path / "parts")

    # Sums of 96 tokens in another order: 96 eps = 1.1e-5, relative.
    assert parts["loss"] == pytest.approx(big["loss"], rel=1.2e-5)
    assert parts["grad_norm"] == pytest.approx(big["grad_norm"], rel=1.2e-5)
    assert parts["tokens"] == big["tokens"] == 96


def test_batch_resets_at_end_tokens(tmp_path):
    corpus = prepare(corpora.plain(tmp_path), 270, tmp_path / "data")

    batch = Batch.read(corpus, seed=0, first=0, size=50, context=8)

    inputs, targets = corpus.windows(seed=0, first=0, size=50, context=8)
    assert torch.equal(batch.inputs, torch.from_numpy(inputs))
    assert torch.equal(batch.targets, torch.from_numpy(targets))
    assert torch.equal(batch.resets, batch.inputs == 0)
    assert batch.resets.any()


def test_steps_read_consecutive_windows(toml, tmp_path, monkeypatch):
    read = []
    windows = Corpus.windows

    def recording(self, seed, first, size, context):
        read.append((first, size))
        return windows(self, seed, first, size, context)

    monkeypatch.setattr(Corpus, "windows", recording)
    run(toml, tmp_path / "run", "run.steps=2", "optim.accumulation=3")

    assert read == [(0, 2), (2, 2), (4, 2), (6, 2), (8, 2), (10, 2)]


def test_gradient_above_the_clip_is_scaled_to_it(toml, tmp_path, monkeypatch):
    norms = []
    step = Optimizers.step

    def recording(self, *factors):
        gradients = [p.grad for part in self.parts for g in part.param_groups for p in g["params"]]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).double().norm()))
        step(self, *factors)

    monkeypatch.setattr(Optimizers, "step", recording)
    run(toml, tmp_path / "clipped", "run.steps=1", "optim.grad_clip=0.01")
    run(toml, tmp_path / "free", "run.steps=1", "optim.grad_clip=0")

    # clip_grad_norm_ divides by norm + 1e-6; norms are float32 sums of 2e5 squares.
    assert norms[0] == pytest.approx(0.01, rel=1e-3)
    assert norms[1] == pytest.approx(records(tmp_path / "free")[0]["grad_norm"], rel=1e-3)
    assert norms[1] > 0.01


def gradients(model: Decoder, objective: torch.nn.Module, resets: bool) -> list[torch.Tensor]:
    tokens = torch.randint(512, (2, 34), generator=torch.Generator().manual_seed(0))
    starts = torch.zeros(2, 33, dtype=torch.bool)
    starts[:, 20] = True
    loss, _ = objective(tokens[:, :-1], tokens[:, 1:], starts if resets else None)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("mixer", ["retention", "window", "full"])
def test_recomputed_activations_give_the_same_gradients_bit_for_bit(mixer, resets):
    torch.manual_seed(0)
    model = Decoder(preset("nano").replace(layers=(mixer, mixer, "cross", "gmu")))
    stored = gradients(model, Objective(model, 0.0), resets)

    model.recompute = True
    recomputed = gradients(model, Objective(model, 0.0), resets)

    assert all(torch.equal(a, b) for a, b in zip(stored, recomputed, strict=True))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors, and their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor.untyped_storage())
        return found

    def note(self, storage: torch.UntypedStorage) -> None:
        pointer, n_bytes = storage.data_ptr(), storage.nbytes()
        if pointer in self.known:
            return
        self.known.add(pointer)
        self.now += n_bytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget, pointer, n_bytes)

    def forget(self, pointer: int, n_bytes: int) -> None:
        self.known.discard(pointer)
        self.now -= n_bytes


def peak_bytes(model: Decoder) -> int:
    tokens = torch.randint(64, (1, 257), generator=torch.Generator().manual_seed(0))
    with LiveBytes() as live:
        Objective(model, 0.0)(tokens[:, :-1], tokens[:, 1:])[0].backward()
    model.zero_grad()
    return live.peak


def test_recomputing_needs_less_than_two_thirds_of_the_memory():
    shape = {"layers": ("retention",) * 5 + ("cross",) * 5, "vocab_size": 64}
    model = Decoder(preset("nano").replace(**shape))
    stored = peak_bytes(model)

    model.recompute = True
    recomputed = peak_bytes(model)

    assert recomputed < stored * 2 / 3


def test_run_that_recomputes_equals_one_that_does_not(toml, tmp_path):
    run(toml, tmp_path / "stored", "run.steps=3")
    run(toml, tmp_path / "recomputed", "run.steps=3", "run.recompute=true")

    assert_same_run(tmp_path / "recomputed", tmp_path / "stored")


def test_compiled_objective_is_one_graph_and_the_head_with_equal_gradients(monkeypatch):
    """Traced by Dynamo and executed by PyTorch: compiled code may differ in the last bit."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.manual_seed(0)
    model = Decoder(preset("nano").replace(layers=("retention", "cross", "gmu")))
    objective = Objective(model, 0.0)

    found = gradients(model, compiled(objective), resets=False)

    assert len(graphs) == 1
    expected = gradients(model, objective, resets=False)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_run_whose_compilation_fails_ends_with_one_line(toml, tmp_path, monkeypatch):
    def backend(graph, inputs):
        raise InductorError(ImportError("main.so: file too short"), None)

    monkeypatch.setattr(setup, "compile_error", lambda: None)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))

    with pytest.raises(CompilationError, match=r"file too short.*; omit --compile, or empty"):
        run(toml, tmp_path / "run", "run.compile=true", 'model.layers=["window"]')


def test_run_without_a_compiler_warns_and_continues(toml, tmp_path, capsys):
    config = load_config(toml, ["run.steps=2", "run.compile=true"])

    # Not by monkeypatch, which would leave the configuration without a compiler.
    with inductor_config.patch({"cpp.cxx": (None, "/nowhere/c++")}):
        loop.train(config, tmp_path / "run", resume=False, console=Console(width=300))

    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "run.compile" in line]
    assert line.startswith("warning: run.compile is on but nothing is compiled: ")
    assert "/nowhere/c++" in line
    assert checkpoint.load_state(checkpoints.last(tmp_path / "run")).is_compiled is False
    run(toml, tmp_path / "plain", "run.steps=2")
    assert_same_run(tmp_path / "run", tmp_path / "plain")
