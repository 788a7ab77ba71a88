"""Inputs and outputs of a call in transformers: masks, positions, embeddings, attention weights."""

from __future__ import annotations

import pytest
import torch
from packed_models import STACKS, nano, tokens

from yocobit.hf import YocobitConfig, YocobitForCausalLM

LENGTHS = (40, 25, 7)
WEIGHTS = "dense"  # rounding in another order changes the codes of quantised activations


@pytest.fixture(scope="module", params=STACKS)
def model(request) -> YocobitForCausalLM:
    return new_model(request.param)


def new_model(stack: str, weights: str = WEIGHTS, **changes) -> YocobitForCausalLM:
    torch.manual_seed(0)
    return YocobitForCausalLM(YocobitConfig(**nano(stack, weights, **changes).to_dict())).eval()


def batch(length: int = 20, n_rows: int = 2) -> torch.Tensor:
    return tokens()[: n_rows * length].view(n_rows, length)


def padded(side: str, lengths=LENGTHS, first: int = 0):
    """Return texts in one batch: input_ids, attention_mask, and the unpadded rows."""
    rows = [tokens()[first + 100 * i :][:length] for i, length in enumerate(lengths)]
    input_ids = torch.full((len(rows), max(lengths)), 77)
    mask = torch.zeros_like(input_ids)
    for i, row in enumerate(rows):
        part = slice(0, len(row)) if side == "right" else slice(max(lengths) - len(row), None)
        input_ids[i, part], mask[i, part] = row, 1
    return input_ids, mask, rows


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # Sums of other lengths round differently, by about 1e-7 of logits below 10.
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


ALTERNATING = [
    pytest.param(sides, marks=pytest.mark.slow) for sides in ("left right", "right right")
]


@pytest.mark.parametrize("sides", ["right left", "left left", *ALTERNATING])
def test_padding_anywhere_changes_nothing_in_later_calls(model, sides):
    """Three calls of several tokens each: of other lengths in each row."""
    cache, mask = None, torch.zeros(3, 0, dtype=torch.long)
    texts = [torch.zeros(0, dtype=torch.long)] * 3
    parts = ((LENGTHS, 0), ((3, 9, 20), 300), ((1, 1, 1), 600), ((2, 1, 3), 700))
    for i, (lengths, first) in enumerate(parts):
        input_ids, new_mask, rows = padded(sides.split()[i % 2], lengths, first)
        mask = torch.cat((mask, new_mask), dim=1)
        texts = [torch.cat(pair) for pair in zip(texts, rows, strict=True)]

        outputs = model(input_ids, attention_mask=mask, past_key_values=cache, use_cache=True)

        cache = outputs.past_key_values
        for logits, is_real, text, row in zip(outputs.logits, new_mask, texts, rows, strict=True):
            assert_close(logits[is_real == 1], model(text[None]).logits[0, -len(row) :])


def test_generate_from_a_padded_batch_equals_generate_from_each_row(model):
    input_ids, mask, rows = padded("left")
    options = {"max_new_tokens": 6, "do_sample": False}

    together = model.generate(input_ids, attention_mask=mask, **options)[:, input_ids.shape[1] :]

    for continued, row in zip(together, rows, strict=True):
        assert torch.equal(continued, model.generate(row[None], **options)[0, len(row) :])


def test_mask_of_another_length_is_rejected():
    model = new_model("yoco-swa")
    cache = model(batch()).past_key_values

    with pytest.raises(ValueError, match=r"shape \(2, 21\), of cached and new tokens, .* \(2, 1\)"):
        model(batch(1), attention_mask=torch.ones(2, 1), past_key_values=cache)


def test_positions_that_transformers_computes_change_no_bit(model):
    input_ids, mask, _ = padded("left")
    positions = (mask.cumsum(dim=1) - 1).masked_fill(mask == 0, 0)

    logits = model(input_ids, attention_mask=mask, position_ids=positions).logits

    assert torch.equal(logits, model(input_ids, attention_mask=mask).logits)


def test_shifted_positions_rotate_queries_and_keys_alike(model):
    input_ids = batch()
    positions = torch.arange(20)[None] + 1000

    logits = model(input_ids, position_ids=positions, attention_mask=torch.ones(2, 20)).logits

    # Angles up to 1e3 in float64; cos and sin in float32.
    torch.testing.assert_close(logits, model(input_ids).logits, rtol=0, atol=1e-4)


def test_other_positions_change_the_logits():
    model = new_model("yoco-swa")
    stretched = 3 * torch.arange(20)[None]

    logits = model(batch(), position_ids=stretched, attention_mask=torch.ones(2, 20)).logits

    assert not torch.allclose(logits, model(batch()).logits, rtol=0, atol=1e-2)


def test_embeddings_replace_tokens(model):
    embeddings = model.get_input_embeddings()(batch()).detach()
    mask = torch.ones(2, 20, dtype=torch.long)
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False}

    assert torch.equal(model(inputs_embeds=embeddings).logits, model(batch()).logits)
    generated = model.generate(inputs_embeds=embeddings, **options)
    assert torch.equal(generated, model.generate(batch(), **options)[:, 20:])


@pytest.mark.parametrize("given, message", [((), "neither"), (("ids", "embeds"), "both")])
def test_tokens_or_embeddings_must_be_given(given, message):
    model = new_model("yoco-swa")
    inputs = {}
    if given:
        inputs = {"input_ids": batch(), "inputs_embeds": model.embedding(batch())}

    with pytest.raises(
        ValueError, match=f"input_ids and inputs_embeds must be given but {message}"
    ):
        model(**inputs)


def test_gradients_reach_embeddings(model):
    embeddings = model.embedding(batch()).detach().requires_grad_()

    model(inputs_embeds=embeddings, labels=batch()).loss.backward()

    assert embeddings.grad.isfinite().all()
    assert (embeddings.grad[:, :-1] != 0).any(dim=-1).all()  # the last has no label


def test_kept_logits_are_those_of_the_indices(model):
    logits = model(batch()).logits

    kept = model(batch(), logits_to_keep=torch.tensor([3, 0, 19])).logits

    assert torch.equal(kept, logits[:, [3, 0, 19]])
    assert_close(model(batch(), logits_to_keep=4).logits, logits[:, -4:])


@pytest.mark.parametrize("kind", ["full", "index"])
def test_attention_weights_are_those_of_the_attention_layers(kind):
    model = new_model("mixed", cross_attention=kind, cross_positions=256)
    input_ids, mask, _ = padded("left")
    n_attention = sum(name in ("window", "full", "cross") for name in model.config.layers)

    outputs = model(
        input_ids, attention_mask=mask, output_attentions=True, output_hidden_states=True
    )

    assert_close(outputs.logits[mask == 1], model(input_ids, attention_mask=mask).logits[mask == 1])
    assert model(input_ids).attentions is None
    assert len(outputs.attentions) == n_attention
    assert len(outputs.hidden_states) == len(model.config.layers) + 1
    for weights in outputs.attentions:
        assert weights.shape[2:] == (40, 40)
        assert torch.equal(weights, weights.tril())
        of_real_tokens = weights.transpose(1, 2)[mask == 1]  # (N, H, S)
        to_padding = (mask == 0).repeat_interleave(mask.sum(dim=1), dim=0)[:, None]
        assert not of_real_tokens[to_padding.expand_as(of_real_tokens)].any()
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:3]))


def test_attention_weights_while_generating_are_those_of_each_step():
    model = new_model("yoco-swa")

    steps = model.generate(
        batch(),
        max_new_tokens=3,
        do_sample=False,
        output_attentions=True,
        output_hidden_states=True,
        return_dict_in_generate=True,
    )

    window = model.config.window
    layers = model.config.layers
    assert [w.shape[2:] for w in steps.attentions[0]] == [(20, 20)] * len(layers)
    assert [w.shape[2:] for w in steps.attentions[2]] == [
        (1, window if name == "window" else 22) for name in layers
    ]
    assert all(x.shape[1] == 20 for x in steps.hidden_states[0])


def test_attention_weights_of_packed_documents_stay_inside_documents():
    model = new_model("transformer")
    positions = torch.tensor([[0, 1, 2, 0, 1]])

    outputs = model(batch(5, 1), position_ids=positions, output_attentions=True)

    assert_close(outputs.logits, model(batch(5, 1), position_ids=positions).logits)
    assert not outputs.attentions[0][:, :, 3:, :3].any()


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_generates_the_same_with_and_without_padding(stack, dtype):
    model = new_model(stack, "ternary").to(dtype)
    input_ids, mask, _ = padded("left")

    generated = model.generate(input_ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    logits = model(input_ids, attention_mask=mask).logits

    assert generated.shape == (3, 45)
    assert logits.dtype == dtype and logits.isfinite().all()


def test_half_precision_keeps_recurrent_states_in_float32():
    model = new_model("yoco-gret").bfloat16()

    cache = model(batch()).past_key_values
    cache = model(batch(1), past_key_values=cache).past_key_values

    assert cache.layers[0].recurrent_states[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_saved_half_precision_model_loads_with_its_dtype(tmp_path, dtype):
    model = new_model("yoco-gret", "ternary").to(dtype)

    model.save_pretrained(tmp_path)

    again = YocobitForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert again.dtype == dtype
    assert torch.equal(again(batch()).logits, model(batch()).logits)


@pytest.mark.parametrize("stack", ["yoco-gret", "yoco-swa"])
@pytest.mark.parametrize("is_half", [False, True])
def test_prompt_tuning_trains_its_virtual_tokens_and_generates(stack, is_half):
    peft = pytest.importorskip("peft")
    model = new_model(stack, "ternary").to(torch.bfloat16 if is_half else torch.float32)
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    tuned = peft.get_peft_model(model, settings)
    mask = torch.ones(2, 20, dtype=torch.long)

    tuned(input_ids=batch(), attention_mask=mask, labels=batch()).loss.backward()
    options = {"attention_mask": mask, "max_new_tokens": 3, "do_sample": False}
    cached = tuned.eval().generate(input_ids=batch(), **options)

    (prompt,) = (p for p in tuned.parameters() if p.requires_grad)
    assert prompt.grad.isfinite().all() and prompt.grad.any()
    assert torch.equal(cached, tuned.generate(input_ids=batch(), use_cache=False, **options))


def test_config_with_its_own_fields_is_the_same():
    config = new_model("mixed").config

    assert YocobitConfig(**config.to_dict()).to_dict() == config.to_dict()
