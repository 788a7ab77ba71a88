"""The engine's text: files are checked when it is loaded, and read once; begin tokens."""

from __future__ import annotations

import json
import shutil

import pytest
from sample_tokenizers import BEGIN, END, TURN, definition, sample_tokenizer

from yocobit import Engine
from yocobit.benchmark.random_model import write_random_model
from yocobit.config import ConfigError, preset
from yocobit.engine import Chat, SamplingConfig
from yocobit.pretrained import TINY

SIZE = sample_tokenizer("sentencepiece").get_vocab_size()
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn|>{{ m.content }}{{ eos_token }}{% endfor %}"
)
MESSAGES = [{"role": "user", "content": f"the {END} earth"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model"
    config = preset("nano").replace(vocab_size=SIZE)
    write_random_model(config, path, tokenizer=definition("sentencepiece").encode())
    ids = {name: sample_tokenizer("sentencepiece").token_to_id(name) for name in (BEGIN, END)}
    generation = {"bos_token_id": ids[BEGIN], "eos_token_id": [ids[END]]}
    (path / "generation_config.json").write_text(json.dumps(generation))
    return path


@pytest.fixture
def copy(model, tmp_path):
    return shutil.copytree(model, tmp_path / "model")


def with_template(path, template: str) -> Engine:
    (path / "chat_template.jinja").write_text(template)
    return Engine.load(path, threads=1)


def named(tokens: list[int]) -> list[str]:
    tokenizer = sample_tokenizer("sentencepiece")
    return [
        name for token in tokens if (name := tokenizer.id_to_token(token)) in (BEGIN, END, TURN)
    ]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TEMPLATE, [BEGIN, TURN, END]),
        ("<s>" + TEMPLATE.removeprefix("{{ bos_token }}"), [BEGIN, TURN, END]),
        (TEMPLATE.removeprefix("{{ bos_token }}"), [BEGIN, TURN, END]),  # as trained here
        ('{% set bos_token = "" %}' + TEMPLATE, [BEGIN, TURN, END]),
        ("{% if false %}{{ bos_token }}{% endif %}<|turn|>", [TURN]),  # as transformers
    ],
    ids=["variable", "literal", "none", "imported by 0.1", "decided otherwise"],
)
def test_prompt_of_a_conversation_has_one_begin_token(copy, template, expected):
    engine = with_template(copy, template)

    assert named(engine.encode_chat(MESSAGES)) == expected
    assert named(engine.encode(engine.chat_template.render(MESSAGES))) == expected


def test_conversation_can_be_rendered_elsewhere(copy):
    engine = with_template(copy, TEMPLATE)
    seen = []

    def render(messages, **variables):
        seen.append((messages, variables))
        return str(engine.chat_template.render(messages, **variables))

    tokens = engine.encode_chat(MESSAGES, render=render, tools=[{"name": END}])

    assert tokens == engine.encode_chat(MESSAGES, tools=[{"name": END}])
    ((messages, variables),) = seen  # rendered once
    assert END not in messages[0]["content"] and END not in str(variables)


def test_plain_text_is_never_a_special_token(copy):
    engine = with_template(copy, TEMPLATE)

    assert named(engine.encode(f"a {END}{TURN} b")) == [BEGIN]
    assert named(engine.encode(str(engine.chat_template.render(MESSAGES)))) == [BEGIN]


def test_chat_shows_the_space_between_prompt_and_reply(copy):
    engine = with_template(copy, "{% for m in messages %}{{ m.content }}{% endfor %}")
    chat = Chat(engine, max_tokens=8, sampling=SamplingConfig(temperature=0))

    reply = chat.reply("the earth")
    text = "".join(reply)

    whole = engine.tokenizer.decode([*reply.prompt, *reply.tokens])
    assert engine.tokenizer.decode(reply.prompt) + text == whole


def test_files_are_found_after_the_working_directory_has_changed(copy, tmp_path, monkeypatch):
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    monkeypatch.chdir(copy.parent)
    engine = Engine.load("model", threads=1)
    monkeypatch.chdir("/")

    assert engine.end_tokens and named(engine.encode("a")) == [BEGIN]
    assert named(engine.encode_chat(MESSAGES)) == [BEGIN, TURN, END]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"bos_token_id": 99999}',
            rf"bos_token_id must be below .* vocab_size {SIZE} but is 99999",
        ),
        ('{"bos_token_id": -1}', "bos_token_id must be at least 0 but is -1"),
        ('{"bos_token_id": true}', "bos_token_id must be an integer"),
        ('{"bos_token_id": "0"}', "bos_token_id must be an integer"),
        ('{"eos_token_id": "0"}', "eos_token_id must be"),
        ('{"eos_token_id": [[0]]}', "eos_token_id must be"),
        ('{"eos_token_id": [0, 99999]}', "eos_token_id must be below"),
        ('{"eos_token_id": {"a": 1}}', "eos_token_id must be"),
        ('{"top_k": 1000000000000000000000}', "top_k must be between 0 and"),
        ('{"temperature": 1' + "0" * 400 + "}", "temperature must be"),
        ('{"temperature": "hot"}', "temperature must be a number"),
        ('{"temperature": NaN}', "is not valid JSON"),
        ('{"stop_strings": [""]}', "stop_strings must be strings"),
        ('{"stop_strings": 5}', "stop_strings must be strings"),
        ('{"do_sample": "yes"}', "do_sample must be true or false"),
        ('{"max_new_tokens": -1}', "max_new_tokens must be at least 1"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "must hold an object but holds list"),
        ("\xff", "is not valid JSON"),
    ],
)
def test_invalid_generation_config_is_rejected_when_the_model_is_loaded(copy, content, message):
    (copy / "generation_config.json").write_bytes(content.encode("latin-1"))

    with pytest.raises(ConfigError, match=rf"generation_config.json: {message}") as raised:
        Engine.load(copy, threads=1)

    assert "\n" not in str(raised.value)


def test_generation_config_may_have_a_byte_order_mark_and_unknown_fields(copy):
    fields = {"transformers_version": "5", "top_p": None, "eos_token_id": 2, "stop_strings": "x"}
    (copy / "generation_config.json").write_text("\ufeff" + json.dumps(fields))

    engine = Engine.load(copy, threads=1)

    assert (engine.end_tokens, engine.stop_strings) == ({2}, ("x",))
    assert engine.generation_config == fields


def test_seed_of_minus_one_is_random():
    seeds = {SamplingConfig(seed=-1).seed for _ in range(20)}

    assert len(seeds) == 20 and min(seeds) >= 0


def test_a_text_of_the_packaged_model_continues_its_prompt():
    engine = Engine.load(TINY, threads=1)

    generation = engine.stream("In the", max_tokens=20, sampling=SamplingConfig(temperature=0))
    text = "".join(generation)

    decode = engine.tokenizer.decode
    assert decode(generation.prompt) + text == decode([*generation.prompt, *generation.tokens])
