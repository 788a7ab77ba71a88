"""What pack keeps of a directory that transformers saved, besides the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from packed_models import nano, text
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from yocobit import Engine
from yocobit.config import ConfigError
from yocobit.data.conversations import CHAT_TEMPLATE, CHECKPOINT_TEMPLATE
from yocobit.data.tokenizer import END, train_tokenizer
from yocobit.hf import YocobitConfig, YocobitForCausalLM
from yocobit.packing import pack

TEMPLATE = (
    "{% for m in messages %}{{ bos_token if loop.first }}{{ start_token + m.role + '\n' }}"
    "{{ m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ start_token + 'assistant\n' }}{% endif %}"
)
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.fixture(scope="module")
def hf_tokenizer() -> PreTrainedTokenizerFast:
    base = train_tokenizer([text()], 300)
    base.add_special_tokens([AddedToken("<|start|>"), AddedToken("<|stop|>")])
    tokens = {"bos_token": END, "eos_token": "<|stop|>", "pad_token": END}
    extra = {"start_token": "<|start|>"}
    return PreTrainedTokenizerFast(tokenizer_object=base, **tokens, extra_special_tokens=extra)


@pytest.fixture
def tuned(hf_tokenizer, tmp_path) -> Path:
    torch.manual_seed(0)
    config = nano("yoco-gret", "ternary", vocab_size=len(hf_tokenizer))
    model = YocobitForCausalLM(YocobitConfig(**config.to_dict()))
    settings = {"bos_token_id": 0, "eos_token_id": [301, 0], "pad_token_id": 0}
    settings |= {"do_sample": True, "temperature": 0.3, "top_k": 7, "stop_strings": ["###"]}
    model.generation_config.update(**settings)
    model.save_pretrained(tmp_path / "tuned")
    hf_tokenizer.chat_template = TEMPLATE
    hf_tokenizer.save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned"


def change(file: Path, **fields) -> None:
    stored = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(stored | fields))


def packed(source: Path) -> Engine:
    return Engine.load(pack(source, source.with_name("packed")).path, threads=1)


def test_generation_settings_are_kept(tuned):
    engine = packed(tuned)

    assert engine.end_tokens == {301, 0}
    assert engine.bos_token == 0
    assert engine.stop_strings == ("###",)
    expected = {"do_sample": True, "temperature": 0.3, "top_k": 7, "pad_token_id": 0}
    assert engine.generation_config.items() >= expected.items()
    assert not engine.generation_config.keys() & {"top_p", "max_new_tokens"}


def test_defaults_complete_a_generation_config_without_sampling(tuned):
    (tuned / "generation_config.json").write_text('{"eos_token_id": 301}')

    engine = packed(tuned)

    assert engine.end_tokens == {301}
    assert engine.generation_config["temperature"] == 0.8


def test_end_token_of_the_tokenizer_is_kept_where_the_model_has_none(tuned):
    (tuned / "generation_config.json").unlink()

    assert packed(tuned).end_tokens == {301}


@pytest.mark.parametrize("place", ["own file", "tokenizer config", "named"])
def test_conversation_has_the_tokens_of_transformers(tuned, hf_tokenizer, place):
    if place != "own file":
        (tuned / "chat_template.jinja").unlink()
        named = [{"name": "rag", "template": "x"}, {"name": "default", "template": TEMPLATE}]
        value = TEMPLATE if place == "tokenizer config" else named
        change(tuned / "tokenizer_config.json", chat_template=value)

    tokens = packed(tuned).encode_chat(CHAT)

    expected = hf_tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)
    assert tokens == expected["input_ids"]


def test_template_without_bos_token_gets_none_as_in_transformers(tuned, hf_tokenizer):
    (tuned / "chat_template.jinja").write_text("{{ messages[0].content + eos_token }}")

    tokens = packed(tuned).encode_chat(CHAT)

    assert tokens == hf_tokenizer("Hi<|stop|>").input_ids


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, CHECKPOINT_TEMPLATE])
def test_template_of_training_is_packed_with_its_stop_strings(tuned, template):
    (tuned / "chat_template.jinja").write_text(template)
    (tuned / "generation_config.json").unlink()

    engine = packed(tuned)

    assert (engine.model.path / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert engine.stop_strings == ("\n<|end|>", "<|end|>")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("generation_config.json", '{"eos_token_id": 99999}', "eos_token_id must be below the mod"),
        ("generation_config.json", '{"eos_token_id": [1, -1]}', "eos_token_id"),
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id"),
        ("generation_config.json", '{"temperature": NaN}', "is not valid JSON"),
        ("generation_config.json", '{"temperature": -1}', "temperature must be"),
        ("generation_config.json", "[]", "must hold an object"),
        ("generation_config.json", "[" * 100000, "is not valid JSON"),
        ("tokenizer_config.json", "[]", "Expected `object`"),
        ("tokenizer_config.json", '{"chat_template": [5]}', "without a template named 'default'"),
        ("tokenizer_config.json", '{"chat_template": 5}', "chat_template must be a string but is"),
        ("tokenizer_config.json", '{"unk_token": 5}', "unk_token must be a string but is 5"),
        ("tokenizer_config.json", '{"bos_token": {"content": []}}', "bos_token must be a string"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "a"}]}', "without a template named"),
        ("tokenizer_config.json", '{"chat_template": "{% for %}"}', "is not a Jinja template"),
        ("tokenizer_config.json", f'{{"chat_template": "{"x" * 131073}"}}', "at most 131,072"),
        ("special_tokens_map.json", "\xff", "is not valid JSON|UTF-8"),
        ("chat_template.jinja", "{{", "is not a Jinja template"),
        ("tokenizer.json", "{}", "is not a tokenizer.json"),
    ],
)
def test_invalid_file_is_named_with_its_rule(tuned, name, content, message):
    if name == "tokenizer_config.json":
        (tuned / "chat_template.jinja").unlink()
    (tuned / name).write_text(content, encoding="latin-1")

    with pytest.raises(ConfigError, match=rf"{name}: .*(?:{message})") as error:
        pack(tuned, tuned.with_name("packed"))

    assert "\n" not in str(error.value)
    assert not tuned.with_name("packed").exists()
