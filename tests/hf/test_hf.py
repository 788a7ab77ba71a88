"""The model in transformers: the numbers of the Decoder, and the interface of trainers."""

from __future__ import annotations

import json

import pytest
import torch
from packed_models import STACKS, nano, packed, text, tokenizer, tokens, trained
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, StaticCache

from yocobit.config import ConfigError, ModelConfig
from yocobit.hf import YocobitConfig, YocobitForCausalLM
from yocobit.model import Decoder
from yocobit.packing import checkpoints, pack

LENGTHS = (40, 25, 7)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def decoders() -> dict[str, Decoder]:
    return {stack: trained(nano(stack, "ternary"), steps=5) for stack in STACKS}


@pytest.fixture(params=["yoco-gret", "yoco-gmu", "yoco-gate", "mixed", "retention"])
def pair(request, decoders) -> tuple[YocobitForCausalLM, Decoder]:
    """The same weights in both."""
    return as_transformers(decoders[request.param]), decoders[request.param]


@pytest.fixture
def gret(decoders) -> tuple[YocobitForCausalLM, Decoder]:
    return as_transformers(decoders["yoco-gret"]), decoders["yoco-gret"]


def as_transformers(decoder: Decoder) -> YocobitForCausalLM:
    model = YocobitForCausalLM(YocobitConfig(**decoder.config.to_dict()))
    model.load_state_dict(decoder.state_dict())
    return model.eval()


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Return texts of LENGTHS in one batch: input_ids, attention_mask, and the unpadded rows."""
    rows = [tokens()[i : i + length] for i, length in enumerate(LENGTHS)]
    input_ids = torch.full((len(rows), max(LENGTHS)), 77)
    mask = torch.zeros_like(input_ids)
    for i, row in enumerate(rows):
        part = slice(0, len(row)) if side == "right" else slice(-len(row), None)
        input_ids[i, part], mask[i, part] = row, 1
    return input_ids, mask, rows


def greedy(model, input_ids, **options) -> torch.Tensor:
    return model.generate(input_ids, max_new_tokens=5, do_sample=False, **options)


def test_logits_equal_those_of_the_decoder(pair):
    model, decoder = pair
    batch = tokens()[:40].view(2, 20)

    assert torch.equal(model(batch).logits, decoder(batch))


def test_last_logits_equal_all_logits(pair):
    model, decoder = pair
    batch = tokens()[:40].view(2, 20)

    last = model(batch, logits_to_keep=3).logits

    torch.testing.assert_close(last, decoder(batch)[:, -3:], rtol=0, atol=1e-5)


def test_generate_with_a_cache_equals_generate_without(pair):
    model, _ = pair
    prompt = tokens()[:40].view(2, 20)

    assert torch.equal(greedy(model, prompt), greedy(model, prompt, use_cache=False))


def test_stack_without_any_state_generates_with_a_cache():
    torch.manual_seed(0)
    model = as_transformers(Decoder(nano("yoco-gret", "dense").replace(layers=("gate", "gate"))))
    prompt = tokens()[:40].view(2, 20)

    cache = model(prompt).past_key_values

    assert cache.get_seq_length() == 20
    assert torch.equal(greedy(model, prompt), greedy(model, prompt, use_cache=False))


def test_beam_search_with_a_cache_equals_beam_search_without(pair):
    model, _ = pair
    prompt = tokens()[:40].view(2, 20)

    beams = greedy(model, prompt, num_beams=3)

    assert torch.equal(beams, greedy(model, prompt, num_beams=3, use_cache=False))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_but_rounding(pair, side):
    model, decoder = pair
    input_ids, mask, rows = padded(side)

    for use_cache in (True, False):
        logits = model(input_ids, attention_mask=mask, use_cache=use_cache).logits

        for i, row in enumerate(rows):
            # Sums of other lengths round differently, by about 1e-7 of logits below 10.
            alone = decoder(row[None])[0]
            torch.testing.assert_close(logits[i, mask[i] == 1], alone, rtol=0, atol=1e-5)


def test_generate_from_a_padded_batch_equals_generate_from_each_prompt(pair):
    model, _ = pair
    input_ids, mask, rows = padded("left")

    together = greedy(model, input_ids, attention_mask=mask)

    for continued, row in zip(together, rows, strict=True):
        assert torch.equal(continued[max(LENGTHS) :], greedy(model, row[None])[0, len(row) :])


def test_position_ids_that_do_not_increase_start_a_document(gret):
    model, decoder = gret
    documents = tokens()[:25].split([13, 1, 11])
    positions = torch.cat([torch.arange(len(document)) for document in documents])

    logits = model(torch.cat(documents)[None], position_ids=positions[None]).logits[0]

    for found, document in zip(logits.split([13, 1, 11]), documents, strict=True):
        torch.testing.assert_close(found, decoder(document[None])[0], rtol=0, atol=1e-5)


def test_loss_skips_ignored_labels(gret):
    model, decoder = gret
    batch = tokens()[:20][None]
    labels = batch.clone()
    labels[:, :11] = -100

    loss = model(batch, labels=labels).loss

    expected = torch.nn.functional.cross_entropy(decoder(batch)[0, 10:-1], batch[0, 11:])
    torch.testing.assert_close(loss, expected)


def test_caches_of_other_kinds_are_rejected(gret):
    model, _ = gret
    for cache in (DynamicCache(), StaticCache(config=model.config, max_cache_len=32)):
        with pytest.raises(ValueError, match=r"DynamicCache\(config=model.config\)"):
            model(tokens()[:4][None], past_key_values=cache)


def test_cache_that_records_the_past_is_rejected(decoders):
    model = as_transformers(decoders["yoco-swa"])
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()

    with pytest.raises(ValueError, match="must not record the past"):
        model(tokens()[:4][None], past_key_values=cache)


def test_a_full_attention_cache_can_be_cropped(decoders):
    model = as_transformers(decoders["transformer"])
    cache = model(tokens()[:20][None]).past_key_values

    cache.crop(-5)
    logits = model(tokens()[15:30][None], past_key_values=cache).logits

    expected = decoders["transformer"](tokens()[:30][None])[:, 15:]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_activation_checkpointing_changes_no_gradient(gret):
    model, _ = gret
    model.train()
    batch = tokens()[:20][None]
    calls = []
    model.layers[0].mixer.register_forward_hook(lambda *_: calls.append(1))

    gradients = []
    for is_checkpointing in (False, True):
        if is_checkpointing:
            model.activation_checkpointing_enable()
        calls.clear()
        model.zero_grad()
        model(batch, labels=batch).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])

    assert len(calls) == 2  # once more, in the backward pass
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again)


@pytest.mark.parametrize("stack", ["yoco-gmu", "mixed"])
def test_gated_memory_units_store_nothing_in_the_cache(decoders, stack):
    model = as_transformers(decoders[stack])

    cache = model(tokens()[:20][None]).past_key_values

    kept = {
        mixer: getattr(layer, "keys", None) is not None
        for layer, mixer in zip(cache.layers, model.config.layers, strict=True)
    }
    assert (kept["cross"], kept["gmu"]) == (True, False)


def test_a_checkpoint_loads_with_model_tokenizer_and_end_token(decoders, tmp_path):
    packed(decoders["yoco-gret"], tmp_path)
    saved = checkpoints.find(tmp_path / "run")

    model = AutoModelForCausalLM.from_pretrained(saved)
    loaded = AutoTokenizer.from_pretrained(saved)

    batch = tokens()[:20][None]
    assert torch.equal(model(batch).logits, decoders["yoco-gret"](batch))
    assert loaded(text()[:200]).input_ids == [0, *tokenizer().encode(text()[:200]).ids]
    assert loaded.padding_side == "left"
    assert loaded.pad_token_id == model.generation_config.eos_token_id == 0


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_saved_model_can_be_loaded_and_packed(tmp_path, tie_embeddings):
    model = as_transformers(Decoder(nano("yoco-gret", "ternary", tie_embeddings=tie_embeddings)))
    batch = tokens()[:20][None]

    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")

    assert (again.head.weight is again.embedding.weight) == tie_embeddings
    assert torch.equal(again(batch).logits, model(batch).logits)
    assert ModelConfig.from_json(tmp_path / "saved/config.json") == model.config.model
    assert AutoConfig.from_pretrained(tmp_path / "saved").model == model.config.model
    assert pack(tmp_path / "saved", tmp_path / "packed").config == model.config.model


def test_packed_model_is_rejected(decoders, tmp_path):
    model = packed(decoders["yoco-gret"], tmp_path)

    with pytest.raises(ConfigError, match="is a packed model"):
        AutoModelForCausalLM.from_pretrained(model.path)


def test_checkpoint_without_a_weight_is_rejected(gret, tmp_path):
    model, _ = gret
    weights = {name: w for name, w in model.state_dict().items() if name != "norm.weight"}
    model.save_pretrained(tmp_path, state_dict=weights)

    with pytest.raises(ConfigError, match=r"'norm\.weight' is missing"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_invalid_config_is_rejected(tmp_path):
    fields = nano("yoco-gret", "ternary").to_json() | {"n_kv_heads": 3}
    (tmp_path / "config.json").write_text(json.dumps(fields))

    with pytest.raises(ConfigError, match="n_kv_heads must divide n_heads = 4 but is 3"):
        AutoConfig.from_pretrained(tmp_path)


def test_resized_embeddings_keep_the_old_tokens(gret, tmp_path):
    model, decoder = gret
    batch = tokens()[:20][None]

    model.resize_token_embeddings(520)
    model.save_pretrained(tmp_path)

    logits = AutoModelForCausalLM.from_pretrained(tmp_path)(batch).logits
    assert logits.shape[-1] == 520
    torch.testing.assert_close(logits[..., :512], decoder(batch), rtol=0, atol=1e-5)
