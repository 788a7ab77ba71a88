"""Saving and loading: Auto classes, remote code, shards, adapters, quantisation of others."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import forked
import pytest
import torch
from packed_models import nano, packed, tokenizer, tokens, trained
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    FineGrainedFP8Config,
)

from yocobit.config import ConfigError
from yocobit.hf import (
    YocobitConfig,
    YocobitForCausalLM,
    YocobitForSequenceClassification,
    YocobitModel,
)
from yocobit.packing import checkpoints, pack
from yocobit.training.checkpoint import load_model


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def model() -> YocobitForCausalLM:
    torch.manual_seed(0)
    return YocobitForCausalLM(YocobitConfig(**nano("yoco-gret", "ternary").to_dict())).eval()


@pytest.fixture
def saved(model, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def batch() -> torch.Tensor:
    return tokens()[:40].view(2, 20)


def run(code: str, *arguments: str) -> str:
    """Run code in a new process without yocobit.hf; return the last line of its output."""
    imports = "import sys; assert 'yocobit.hf' not in sys.modules; import transformers"
    done = forked.run(*arguments, code=f"{imports}\n{code}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Do you wish to run the custom code?" not in done.stdout
    return done.stdout.splitlines()[-1]


def test_class_of_a_classifier_that_an_earlier_version_pickled_is_found():
    pickled = b"cyocobit.hf.modeling\nYocobitForSequenceClassification\n."

    with pytest.warns(DeprecationWarning, match=r"is now yocobit\.hf\.Yocobit"):
        assert pickle.loads(pickled) is YocobitForSequenceClassification


LOAD = """
path = sys.argv[1]
tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
assert tokenizer.vocab_size > 256
config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=True)
loaded = transformers.AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
loaded.save_pretrained(sys.argv[2])
print(type(config).__name__, type(loaded).__name__)
"""


@pytest.mark.parametrize("is_run", [pytest.param(False, marks=pytest.mark.slow), True])
def test_checkpoint_loads_by_remote_code_without_an_import(model, saved, tmp_path, is_run):
    if is_run:
        packed(trained(nano("yoco-gret", "ternary"), steps=1), tmp_path)
        saved = checkpoints.find(tmp_path / "run")
    else:
        saved.joinpath("tokenizer.json").write_text(tokenizer().to_str())
        saved.joinpath("tokenizer_config.json").write_text('{"bos_token": "<|end|>"}')

    assert run(LOAD, str(saved), str(tmp_path / "again")) == "YocobitConfig YocobitForCausalLM"

    again = json.loads((tmp_path / "again/config.json").read_text())
    assert again["auto_map"] == checkpoints.AUTO_MAP
    assert (tmp_path / "again" / checkpoints.REMOTE_CODE).is_file()
    assert pack(tmp_path / "again", tmp_path / "packed-again").config.vocab_size == 512


def test_checkpoint_loads_as_a_base_model(model, saved):
    base = AutoModel.from_pretrained(saved)

    hidden = base(batch()).last_hidden_state

    assert type(base) is YocobitModel
    assert torch.equal(hidden, model(batch()).last_hidden_state)
    assert torch.equal(hidden, model.base_model(batch()).last_hidden_state)


def test_checkpoint_loads_for_sequence_classification_with_a_new_head(model, saved, tmp_path):
    classifier = AutoModelForSequenceClassification.from_pretrained(saved, num_labels=3)
    classifier.save_pretrained(tmp_path / "classifier")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")

    assert type(again) is YocobitForSequenceClassification
    assert again.config.num_labels == 3
    assert torch.equal(again(batch()).logits, classifier(batch()).logits)
    assert torch.equal(classifier.embedding.weight, model.embedding.weight)


@pytest.mark.parametrize("side", ["left", "right"])
def test_classification_reads_the_last_token_that_is_not_padding(saved, side):
    classifier = AutoModelForSequenceClassification.from_pretrained(saved, num_labels=2)
    row, padding = tokens()[:12], torch.full((5,), 7)
    order = [padding, row] if side == "left" else [row, padding]
    mask = torch.cat([torch.full_like(part, part is row) for part in order])

    logits = classifier(torch.cat(order)[None], attention_mask=mask[None]).logits

    torch.testing.assert_close(logits, classifier(row[None]).logits, rtol=0, atol=1e-5)


def test_classifier_is_not_packed(saved, tmp_path):
    classifier = AutoModelForSequenceClassification.from_pretrained(saved, num_labels=2)
    classifier.save_pretrained(tmp_path / "classifier")

    with pytest.raises(ConfigError, match=r"'head\.weight' differs"):
        pack(tmp_path / "classifier", tmp_path / "packed")


def test_weights_can_be_given_without_a_file(model):
    again = YocobitForCausalLM.from_pretrained(
        None, config=model.config, state_dict=model.state_dict()
    )

    assert torch.equal(again(batch()).logits, model(batch()).logits)


def test_sharded_checkpoint_packs_and_loads_as_one_in_one_file(model, saved, tmp_path):
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 1

    whole, parts = (pack(tmp_path / n, tmp_path / f"packed-{n}") for n in ("saved", "sharded"))

    assert whole.file.read_bytes() == parts.file.read_bytes()
    assert torch.equal(load_model(tmp_path / "sharded")(batch()), model(batch()).logits)


@pytest.mark.parametrize("size, file", [("5GB", ""), ("100KB", "-00001-of-0000[0-9]")])
def test_variant_is_rejected_where_a_checkpoint_is_expected(model, tmp_path, size, file):
    model.save_pretrained(tmp_path, variant="fp16", max_shard_size=size)

    message = rf"must be in model\.safetensors but are in model\.fp16{file}\.safetensors; save them"
    with pytest.raises(ConfigError, match=message):
        checkpoints.find(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", 3])
def test_index_of_shards_names_files_of_the_directory_only(saved, tmp_path, name):
    (saved / "model.safetensors").rename(saved / "model-1.safetensors")
    index = {"weight_map": {"embedding.weight": name}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(ConfigError, match="weight_map must map tensors to files of the directory"):
        pack(saved, tmp_path / "packed")


def test_adapter_is_rejected_where_a_checkpoint_is_expected(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")

    with pytest.raises(ConfigError, match="is an adapter without its model; merge them"):
        checkpoints.find(tmp_path)


def test_quantisation_by_another_library_is_rejected(saved):
    with pytest.raises(ConfigError, match="quantization_config must be absent but is fp8: layers"):
        AutoModelForCausalLM.from_pretrained(saved, quantization_config=FineGrainedFP8Config())
    file = saved / "config.json"
    fields = json.loads(file.read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    file.write_text(json.dumps(fields))
    for auto in (AutoConfig, AutoModelForCausalLM):
        with pytest.raises(ConfigError, match="quantization_config must be absent but is gptq"):
            auto.from_pretrained(saved)
    with pytest.raises(ConfigError, match="quantization_config"):
        pack(saved, saved.with_name("packed"))


def test_hidden_states_are_those_of_each_block(model):
    states = model(batch(), output_hidden_states=True).hidden_states

    assert len(states) == len(model.layers) + 1
    assert torch.equal(states[0], model.embedding(batch()) * model.config.d_model**0.5)
    assert torch.equal(model.head(states[-1]), model(batch()).logits)


def test_config_is_created_from_its_dictionary_under_either_name(model):
    fields = model.config.to_dict()

    assert YocobitConfig.from_dict(fields).to_dict() == fields
    assert (fields["hidden_size"], fields["num_hidden_layers"]) == (64, 4)
    assert YocobitConfig(**fields, name_or_path="x").model == model.config.model
    assert YocobitConfig.from_dict(fields, hidden_size=128).model.d_model == 128
