"""Training with the libraries around transformers: its Trainer, PEFT's adapters, TRL."""

from __future__ import annotations

import re

import pytest
import torch
from packed_models import nano, tokenizer, tokens
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from yocobit.data.tokenizer import END
from yocobit.hf import YocobitConfig, YocobitForCausalLM
from yocobit.packing import pack

STEPS = 10
REENTRANT = {"use_reentrant": True}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def new_model() -> YocobitForCausalLM:
    torch.manual_seed(0)
    return YocobitForCausalLM(YocobitConfig(**nano("yoco-gret", "ternary").to_dict()))


def windows(length: int = 32) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": row, "labels": row} for row in tokens().split(length)[:40]]


def train(model, directory, resume=None, **settings) -> list[float]:
    """Train for STEPS steps, all or those after a checkpoint; return all losses."""
    arguments = TrainingArguments(
        output_dir=str(directory),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=3e-3,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=windows())
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trainer_learns_and_saves_a_model_that_loads_and_packs(tmp_path):
    model = new_model()

    losses = train(model, tmp_path, save_steps=STEPS)

    saved = tmp_path / f"checkpoint-{STEPS}"
    batch = tokens()[:20][None]
    assert len(losses) == STEPS and losses[-1] < losses[0] - 0.5
    again = AutoModelForCausalLM.from_pretrained(saved)
    assert torch.equal(again(batch).logits, model.eval()(batch).logits)
    assert pack(saved, tmp_path / "packed").config == model.config.model


@pytest.mark.slow
def test_lora_trains_only_its_adapters_and_learns(tmp_path):
    peft = pytest.importorskip("peft")
    model = new_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    lora = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, lora)

    losses = train(adapted, tmp_path)

    assert losses[-1] < losses[0]
    adapters = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert any("q_proj.lora_A" in name for name in adapters)
    assert all("lora_" in name for name in adapters)
    for name, p in adapted.unload().named_parameters():
        assert torch.equal(p, before[name])


def test_submodule_replaced_by_peft_is_trained(tmp_path):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=4, target_modules=["v_proj"], modules_to_save=["head"])
    adapted = peft.get_peft_model(new_model(), lora)
    before = adapted.base_model.model.head.modules_to_save["default"].weight.clone()

    train(adapted, tmp_path)

    assert not torch.equal(adapted.base_model.model.head.modules_to_save["default"].weight, before)


@pytest.mark.slow
def test_activation_checkpointing_changes_no_loss(tmp_path):
    plain = train(new_model(), tmp_path / "plain")

    assert train(new_model(), tmp_path / "again", gradient_checkpointing=True) == plain
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": REENTRANT}
    assert train(new_model(), tmp_path / "reentrant", **reentrant) == plain


def test_trainer_learns_under_bfloat16_autocast(tmp_path):
    losses = train(new_model(), tmp_path, bf16=True)

    assert losses[-1] < losses[0] - 0.5


@pytest.mark.slow
def test_resumed_training_repeats_the_losses(tmp_path):
    losses = train(new_model(), tmp_path / "run", save_steps=5)

    again = train(new_model(), tmp_path / "again", resume=tmp_path / "run/checkpoint-5")

    assert again == losses


def test_adapter_is_saved_loaded_and_merged_into_a_model_that_packs(tmp_path):
    peft = pytest.importorskip("peft")
    new_model().save_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(base, lora)
    train(adapted, tmp_path / "run")
    batch = tokens()[:20][None]
    expected = adapted.eval()(batch).logits

    adapted.save_pretrained(tmp_path / "adapter")
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    auto = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()

    for loaded in (again, auto):
        torch.testing.assert_close(loaded(batch).logits, expected, rtol=0, atol=1e-4)
    merged = again.merge_and_unload()
    assert type(merged) is YocobitForCausalLM
    merged.save_pretrained(tmp_path / "merged")
    assert pack(tmp_path / "merged", tmp_path / "packed").config == merged.config.model


@pytest.mark.parametrize(
    ("kind", "modules"),
    [("LoraConfig", {"q_proj", "v_proj"}), ("IA3Config", {"k_proj", "v_proj", "down_proj"})],
)
def test_adapter_without_target_modules_has_those_of_llama(kind, modules):
    peft = pytest.importorskip("peft")

    adapted = peft.get_peft_model(new_model(), getattr(peft, kind)(task_type="CAUSAL_LM"))

    trained = {
        re.findall(r"\w+_proj", n)[0] for n, p in adapted.named_parameters() if p.requires_grad
    }
    assert trained == modules


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "IA3Config"])
def test_other_adapters_learn(tmp_path, kind):
    peft = pytest.importorskip("peft")
    settings = {"num_virtual_tokens": 4}
    if kind == "IA3Config":
        settings = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    adapted = peft.get_peft_model(
        new_model(), getattr(peft, kind)(task_type="CAUSAL_LM", **settings)
    )

    losses = train(adapted, tmp_path)

    assert losses[-1] < losses[0]


def test_prefix_tuning_is_rejected_by_recurrent_states(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)

    with pytest.raises(ValueError, match="must have the recurrent state of 'retention' layers"):
        train(peft.get_peft_model(new_model(), config), tmp_path)


def fine_tune(model, directory, **settings) -> list[float]:
    """Train for 3 steps with TRL, on texts of several lengths; return the losses."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    texts = tokens()[:600].split([40, 25, 60, 75] * 3)
    arguments = trl.SFTConfig(
        output_dir=str(directory),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=3e-3,
        logging_steps=1,
        save_steps=3,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        **settings,
    )
    trainer = trl.SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list([{"input_ids": row.tolist()} for row in texts]),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=tokenizer(), pad_token=END),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("packing", [pytest.param(False, marks=pytest.mark.slow), True])
def test_trl_learns_and_saves_a_model_that_loads(tmp_path, packing):
    model = new_model()

    losses = fine_tune(model, tmp_path, max_length=64, packing=packing)

    batch = tokens()[:20][None]
    assert len(losses) == 3 and losses[-1] < losses[0]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-3")
    assert torch.equal(again(batch).logits, model.eval()(batch).logits)


@pytest.mark.slow
def test_trl_loss_without_padding_equals_that_with_padding(tmp_path):
    padded = fine_tune(new_model(), tmp_path / "padded", max_length=None)
    free = fine_tune(new_model(), tmp_path / "free", max_length=None, padding_free=True)

    # Of the same weights; other orders of float32 sums change quantised values.
    assert free[0] == pytest.approx(padded[0], rel=1e-6)
