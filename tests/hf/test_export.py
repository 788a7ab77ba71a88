"""Export and compilation of the transformers model; tensors without values; offloading."""

from __future__ import annotations

import pytest
import torch
from packed_models import STACKS, nano, tokens
from published_decoders import CASES
from torch._subclasses.fake_tensor import FakeTensorMode

from yocobit.config import ModelConfig
from yocobit.hf import YocobitConfig, YocobitForCausalLM
from yocobit.model.rope import _cached_range_cos_sin

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def new_model(stack: str, weights: str = "dense") -> YocobitForCausalLM:
    return model_of(nano(stack, weights))


def model_of(config: ModelConfig) -> YocobitForCausalLM:
    torch.manual_seed(0)
    return YocobitForCausalLM(YocobitConfig(**config.to_dict())).eval()


def inputs(n_rows: int, length: int) -> dict[str, torch.Tensor]:
    mask = torch.ones(n_rows, length, dtype=torch.long)
    mask[0, :5] = 0
    mask[-1, -3:] = 0
    return {"input_ids": tokens()[: n_rows * length].view(n_rows, length), "attention_mask": mask}


def test_exported_model_has_any_batch_and_length():
    check_export(new_model("mixed"))


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
def test_exported_stack_has_any_batch_and_length(stack):
    check_export(new_model(stack))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "hunyuan", "phi3", "bitnet"])
def test_exported_published_model_has_any_batch_and_length(name):
    check_export(model_of(CASES[name].config))


def check_export(model: YocobitForCausalLM) -> None:
    example, others = inputs(3, 20), inputs(2, 131)
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=3)}
    expected = model(**others, use_cache=False).logits

    shapes = {"input_ids": dims, "attention_mask": dims, "use_cache": None}
    program = torch.export.export(
        model, (), example | {"use_cache": False}, dynamic_shapes=shapes, strict=False
    )

    actual = program.module()(**others, use_cache=False).logits
    is_real = others["attention_mask"] == 1
    # The parallel form of retention sums in another order than the chunkwise one.
    torch.testing.assert_close(actual[is_real], expected[is_real], rtol=0, atol=1e-4)
    assert torch.equal(model(**others, use_cache=False).logits, expected)


@pytest.mark.parametrize("stack", ["yoco-gret", "yoco-swa"])
@pytest.mark.parametrize("weights", ["dense", "ternary"])
def test_fake_tensors_stay_out_of_the_rope_cache(stack, weights):
    model, input_ids = new_model(stack, weights), tokens()[:46].view(2, 23)
    _cached_range_cos_sin.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert model(input_ids).logits.shape == (2, 23, 512)

    logits = model(input_ids).logits
    assert type(logits) is torch.Tensor and logits.isfinite().all()


def test_rope_tables_are_on_the_cpu_under_another_default_device():
    model, input_ids = new_model("yoco-gret"), tokens()[:50].view(2, 25)
    expected = model(input_ids[:, :24]).logits

    with torch.device("meta"):
        model.layers[0].mixer(torch.zeros(1, 25, 64, device="cpu"), 7, None)

    assert torch.equal(model(input_ids[:, :24]).logits, expected)


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["yoco-gret", "yoco-swa"])
def test_compiled_model_equals_the_eager_one(stack):
    model, input_ids = new_model(stack), tokens()[:40].view(2, 20)
    compiled = torch.compile(model, backend="aot_eager")

    logits = compiled(input_ids, use_cache=False).logits

    torch.testing.assert_close(logits, model(input_ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stack", ["mixed", "yoco-gret"])
@pytest.mark.parametrize("weights", ["dense", "ternary"])
def test_offloaded_model_equals_the_one_in_memory(tmp_path, stack, weights):
    accelerate = pytest.importorskip("accelerate")
    model, input_ids = new_model(stack, weights), tokens()[:40].view(2, 20)
    expected = model(input_ids).logits
    model.save_pretrained(tmp_path / "model")

    loaded = YocobitForCausalLM.from_pretrained(
        tmp_path / "model",
        device_map={"": "disk"},
        offload_folder=str(tmp_path / "disk"),
    )
    cpu = accelerate.cpu_offload(new_model(stack, weights), execution_device="cpu")

    for offloaded in (loaded, cpu):
        # The fused norm rounds in another order than its parts.
        actual = offloaded(input_ids).logits
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 if weights == "dense" else 1)
