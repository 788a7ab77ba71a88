"""Published models have exactly the special tokens that their own tokenizers add."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import servers
import torch
import transformers
from sample_tokenizers import sample_tokenizer
from tokenizers import AddedToken, Tokenizer, processors

from yocobit import Engine
from yocobit.config import ConfigError
from yocobit.importers import import_model
from yocobit.packing.text_files import read_text_files
from yocobit.serving import ServerSettings

BOS, EOS, TURN = "<|begin|>", "<|end|>", "<|turn|>"
NAMES = (BOS, EOS, TURN)
TEXTS = ["In the beginning God created", " and 12,345", f"a {BOS} b", ""]
CHATS = [
    [{"role": "user", "content": "the heaven"}],
    [{"role": role, "content": f"{role} says"} for role in ("system", "user", "assistant", "user")],
]
LLAMA3_TEMPLATE = (
    "{% for m in messages %}{% set content = '<|turn|>' + m.role + '\n\n' + m.content | trim %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn|>assistant\n\n' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for m in messages %}{{ '<|turn|>' + m.role + '\n' + m.content + '<|end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}"
)


def tokenizer_with(before: list[str], after: list[str], in_sequence: bool = False) -> Tokenizer:
    tokenizer = sample_tokenizer("byte_level")
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in NAMES])
    ids = [(name, tokenizer.token_to_id(name)) for name in NAMES]
    template = processors.TemplateProcessing(single=[*before, "$A", *after], special_tokens=ids)
    if before or after:
        byte_level = processors.ByteLevel(trim_offsets=False)
        tokenizer.post_processor = (
            processors.Sequence([byte_level, template]) if in_sequence else template
        )
    return tokenizer


# What publishers write, by its kind: the tokenizer, tokenizer_config.json and the template.
KINDS = {
    # A sequence with the BOS token, as in Llama 3 and 2B4T.
    "llama3": (tokenizer_with([BOS], [], in_sequence=True), {"bos_token": BOS}, LLAMA3_TEMPLATE),
    # A BOS token in config.json only, as in Qwen2 and Qwen3.
    "qwen": (
        tokenizer_with([], []),
        {"bos_token": None, "add_bos_token": False},
        QWEN_TEMPLATE,
    ),
    # add_bos_token has no effect on a tokenizer.json.
    "claim": (tokenizer_with([], []), {"bos_token": BOS, "add_bos_token": True}, LLAMA3_TEMPLATE),
    "denial": (
        tokenizer_with([BOS], []),
        {"bos_token": BOS, "add_bos_token": False},
        QWEN_TEMPLATE,
    ),
    # A token after the text, as in Qwen3-Embedding.
    "embedding": (tokenizer_with([], [EOS], in_sequence=True), {"bos_token": None}, QWEN_TEMPLATE),
    "both": (tokenizer_with([BOS], [EOS]), {"bos_token": BOS}, LLAMA3_TEMPLATE),
}


def write_weights(directory: Path, tokenizer: Tokenizer, bos: str) -> None:
    """Write config.json, which names a BOS token, and random weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        bos_token_id=tokenizer.token_to_id(bos),
        eos_token_id=tokenizer.token_to_id(EOS),
    )
    transformers.LlamaForCausalLM(config).save_pretrained(directory)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a function that writes a published directory of a kind, without the weights."""

    def write(kind: str) -> Path:
        tokenizer, config, template = KINDS[kind]
        directory = tmp_path_factory.mktemp(kind)
        tokenizer.save(str(directory / "tokenizer.json"))
        fields = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, **config}
        (directory / "tokenizer_config.json").write_text(json.dumps(fields))
        (directory / "chat_template.jinja").write_text(template)
        return directory

    return write


@pytest.fixture(scope="module", params=KINDS)
def model(request, source, tmp_path_factory):
    """The tokenizer of transformers, and the engine of the imported model."""
    directory = source(request.param)
    write_weights(directory, KINDS[request.param][0], bos=BOS)
    packed = import_model(directory, tmp_path_factory.mktemp("packed") / "model")
    return transformers.AutoTokenizer.from_pretrained(directory), Engine(packed, 1, None)


def plain(theirs, text: str) -> list[int]:
    """Return the ids of transformers, for a text that spells no special token."""
    return list(theirs(text).input_ids)


def test_texts_have_the_tokens_of_transformers(model):
    theirs, engine = model
    suffix = list(engine.encoder.suffix)

    for text in TEXTS:
        if BOS not in text:
            assert [*engine.encode(text), *suffix] == plain(theirs, text)
    assert suffix == [token for token in plain(theirs, "a")[-1:] if token == theirs.eos_token_id]


def test_a_spelled_bos_token_is_text(model):
    _, engine = model
    n_before = len(engine.encode(""))

    tokens = engine.encode(f"a {BOS} b")

    assert engine.tokenizer.token_to_id(BOS) not in tokens[n_before:]


@pytest.mark.parametrize("chat", CHATS, ids=["one message", "four messages"])
def test_conversations_have_the_tokens_of_transformers(model, chat):
    theirs, engine = model

    expected = theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]

    assert engine.encode_chat(chat) == expected
    assert engine.encode(engine.chat_template.render(chat)) == expected


def test_generation_does_not_append_an_end_token(model):
    theirs, engine = model
    end = theirs.eos_token_id

    assert end not in engine.encode("In the beginning")


def test_embeddings_are_those_of_the_tokens_of_transformers(model):
    theirs, engine = model
    texts = ["In the beginning", "light"]
    settings = ServerSettings(
        model=engine.model.path, threads=1, context=64, max_sequences=2, max_waiting=2
    )

    with servers.running(settings) as server:
        answer = server.post("/v1/embeddings", input=texts, pooling="last").json()
        of_tokens = server.post(
            "/v1/embeddings", input=[plain(theirs, text) for text in texts], pooling="last"
        ).json()

    assert answer["data"] == of_tokens["data"]
    assert answer["usage"]["prompt_tokens"] == sum(len(plain(theirs, text)) for text in texts)
    tokens = plain(theirs, texts[1])
    hidden = engine.session(len(tokens)).hidden_states(tokens).astype(np.float64)[-1]
    expected = (hidden / np.sqrt((hidden * hidden).sum())).astype(np.float32)
    assert np.array_equal(np.float32(answer["data"][1]["embedding"]), expected)


def test_the_tokenizer_of_another_directory_decides(source, tmp_path):
    tokenizer = KINDS["llama3"][0]
    ids = {name: tokenizer.token_to_id(name) for name in NAMES}
    write_weights(tmp_path / "hf", tokenizer, bos=TURN)

    found = {}
    for kind in ("llama3", "qwen"):
        packed = import_model(tmp_path / "hf", tmp_path / kind, tokenizer=source(kind))
        found[kind] = Engine(packed, 1, None).bos_token

    assert found == {"llama3": ids[BOS], "qwen": None}


def test_an_import_warns_of_characters_without_tokens_and_rejects_lost_text(source, tmp_path):
    directory = source("qwen")
    file, tokenizer = directory / "tokenizer.json", KINDS["qwen"][0]
    write_weights(directory, tokenizer, bos=BOS)
    fields = json.loads(tokenizer.to_str())

    def lines(byte: str, out: str) -> list[str]:
        vocab = {name: i for name, i in fields["model"]["vocab"].items() if name != byte}
        model = {**fields["model"], "vocab": vocab, "merges": []}
        file.write_text(json.dumps({**fields, "model": model}))
        reported: list[str] = []
        import_model(directory, tmp_path / out, report=reported.append)
        return reported

    dropped, _ = lines("ñ", "unassigned")  # the name of byte F1
    assert dropped == (
        f"{directory}: its tokenizer drops characters that texts rarely have: "
        "U+40000 to U+7FFFF (unassigned)"
    )
    with pytest.raises(ConfigError, match=r"its tokenizer: loses text: '🙂' becomes") as error:
        lines("ð", "lost")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "lost").exists()


def test_more_than_one_token_before_a_text_is_rejected(source):
    directory = source("qwen")
    tokenizer_with([TURN, BOS], []).save(str(directory / "tokenizer.json"))

    message = r"must add at most one token before a text but adds '<\|turn\|>', '<\|begin\|>'"
    with pytest.raises(ConfigError, match=message):
        read_text_files(directory, 1000)
