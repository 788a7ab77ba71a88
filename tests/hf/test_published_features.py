"""Models with the architecture features of published models, as models of transformers."""

from __future__ import annotations

import json

import pytest
import torch
from published_decoders import CASES, V, pair

from yocobit.config import ModelConfig
from yocobit.hf import YocobitConfig, YocobitForCausalLM, YocobitModel
from yocobit.model import Decoder


@pytest.fixture(scope="module", params=CASES)
def models(request) -> tuple[YocobitForCausalLM, Decoder]:
    """The same weights in float32."""
    _, decoder = pair(request.param)
    return as_transformers(decoder.float()), decoder


def as_transformers(decoder: Decoder) -> YocobitForCausalLM:
    model = YocobitForCausalLM(YocobitConfig(**decoder.config.to_dict()))
    model.load_state_dict(decoder.state_dict())
    return model.eval()


def tokens() -> torch.Tensor:
    return torch.randint(V, (2, 12), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_logits_equal_those_of_the_decoder(models):
    model, decoder = models

    assert torch.equal(model(tokens()).logits, decoder(tokens()))


def test_generate_with_a_cache_equals_generate_without(models):
    model, _ = models
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}

    found = model.generate(tokens(), **options)

    assert torch.equal(found, model.generate(tokens(), **options, use_cache=False))


@torch.no_grad()
def test_last_hidden_states_times_the_head_are_the_logits(models):
    """As trainers compute them from config.logit_scale and the matrix of the head."""
    model, decoder = models

    hidden = model.base_model(tokens()).last_hidden_state
    logits = hidden @ model.get_output_embeddings().weight.mT * model.config.logit_scale

    torch.testing.assert_close(logits, decoder(tokens()))


@torch.no_grad()
def test_a_saved_model_has_the_logits_and_the_config(models, tmp_path):
    model, decoder = models

    model.save_pretrained(tmp_path)

    loaded = YocobitForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(tokens()).logits, decoder(tokens()))
    assert ModelConfig.from_json(tmp_path / "config.json") == decoder.config
    fields = json.loads((tmp_path / "config.json").read_text())
    assert decoder.config.to_dict().keys() <= fields.keys()
    absent = decoder.config.fields().keys() - decoder.config.to_dict().keys()
    assert not absent & fields.keys()


def test_the_config_has_an_attribute_for_every_field():
    config = YocobitConfig()

    assert config.head_size is None
    assert config.nope_layers == []
    assert {name: getattr(config, name) for name in config.model.fields()} == config.model.fields()


def test_a_changed_attribute_changes_the_model():
    config = YocobitConfig(**CASES["qwen3"].config.to_dict())

    config.head_size = 40

    assert config.model.head_size == 40
    assert YocobitModel(config).layers[0].mixer.q_proj.out_features == 160


@torch.no_grad()
def test_new_biases_are_zero():
    model = YocobitForCausalLM(YocobitConfig(**CASES["qwen2"].config.to_dict()))

    biases = [p for name, p in model.named_parameters() if name.endswith(".bias")]
    assert len(biases) == 6
    assert not any(bias.any() for bias in biases)


def test_resized_embeddings_keep_the_norm_of_the_head():
    _, decoder = pair("bitnet")
    model = as_transformers(decoder.float())

    model.resize_token_embeddings(V + 8)

    assert "head.norm.weight" in model.state_dict()
    hidden = model.base_model(tokens()).last_hidden_state
    assert torch.equal(model.head(hidden), model(tokens()).logits)
