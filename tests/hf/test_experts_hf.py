"""Mixtures of experts and weights-only formats in transformers."""

from __future__ import annotations

import pytest
import torch
from packed_models import nano, tokens

from yocobit.config import ConfigError
from yocobit.hf import YocobitConfig, YocobitForCausalLM
from yocobit.model import Decoder

EXPERTS = {"ffn": "moe", "n_experts": 4, "n_active_experts": 2, "d_ff": 32}


def model(weights: str, **changes) -> YocobitForCausalLM:
    torch.manual_seed(0)
    config = nano("yoco-gret", weights, **changes)
    return YocobitForCausalLM(YocobitConfig(**config.to_dict())).eval()


@pytest.mark.parametrize("changes", [{}, EXPERTS], ids=["swiglu", "moe"])
def test_saved_models_load_and_generate_as_the_decoder(changes, tmp_path):
    model("ternary_g128", **changes).save_pretrained(tmp_path)
    loaded = YocobitForCausalLM.from_pretrained(tmp_path).eval()
    prompt = tokens()[None, :20]

    found = loaded.generate(prompt, max_new_tokens=8, do_sample=False)

    decoder = Decoder(loaded.config.model).eval()
    decoder.load_state_dict(loaded.state_dict())
    expected = prompt
    with torch.no_grad():
        for _ in range(8):
            best = decoder(expected)[:, -1:].argmax(dim=-1)
            expected = torch.cat([expected, best], dim=1)
    assert torch.equal(found, expected)


def test_gradient_checkpointing_gives_the_same_gradients():
    plain, checkpointed = (model("ternary_g128", **EXPERTS).train() for _ in range(2))
    checkpointed.gradient_checkpointing_enable()
    rows = tokens()[:64].view(2, 32)
    for each in (plain, checkpointed):
        each(rows, labels=rows).loss.backward()

    for a, b in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_untrainable_weights_are_rejected_in_one_line():
    with pytest.raises(ConfigError, match=r"^weights must be .* but are 'int2_g128'"):
        model("int2_g128")


def test_export_of_experts_is_rejected_in_one_line():
    with pytest.raises(ConfigError, match=r"^export: ffn must not be 'moe'"):
        torch.export.export(
            model("dense", **EXPERTS), (tokens()[None, :8],), {"use_cache": False}, strict=False
        )
