"""TRL's trainers take one step from the path of a checkpoint, and with a reference model."""

from __future__ import annotations

import pytest
from packed_models import nano, tokenizer, trained
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import yocobit.hf  # noqa: F401
from yocobit.data.conversations import CHAT_TEMPLATE
from yocobit.packing import pack
from yocobit.training import checkpoint

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

pytestmark = pytest.mark.filterwarnings("ignore")
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
OTHER = [CHAT[0], {"role": "assistant", "content": "No"}]
PREFERENCE = {"prompt": "Say", "chosen": " the licence", "rejected": " of the work"}
DATA = {
    "SFT": [{"messages": CHAT}] * 4,
    "DPO": [PREFERENCE] * 4,
    "KTO": [{"prompt": "Say", "completion": " it", "label": i % 2 == 0} for i in range(4)],
    "GRPO": [{"prompt": "Say the"}] * 4,
    "RLOO": [{"prompt": "Say the"}] * 4,
    "Reward": [{"chosen": CHAT, "rejected": OTHER}] * 4,
}
GENERATION = {"num_generations": 2, "max_completion_length": 4, "per_device_train_batch_size": 4}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    state = checkpoint.RunState(corpus_sha256="", step=1)
    model = trained(nano("yoco-gret", "ternary"), steps=2)
    directory = tmp_path_factory.mktemp("trl") / "run"
    return str(checkpoint.save(directory, state, model, {}, {}, tokenizer(), 1, CHAT_TEMPLATE))


def train(kind, model, directory, settings=None, **arguments):
    """Take one step with TRL's trainer of a kind; return its directory."""
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(directory),
        **{
            "max_steps": 1,
            "per_device_train_batch_size": 2,
            "save_steps": 1,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            **(settings or {}),
        },
    )
    trainer = getattr(trl, f"{kind}Trainer")(
        model=model, args=config, train_dataset=datasets.Dataset.from_list(DATA[kind]), **arguments
    )
    trainer.train()
    return directory / "checkpoint-1"


def length(completions, **_):
    return [float(len(completion)) for completion in completions]


def test_conversations_train_on_the_assistant_only_and_pack(saved, tmp_path):
    found = train("SFT", saved, tmp_path, {"assistant_only_loss": True})

    packed = pack(found, tmp_path / "packed").path
    assert (packed / "chat_template.jinja").read_text() == CHAT_TEMPLATE


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["DPO", "KTO", "Reward"])
def test_preferences_train_from_a_path(saved, tmp_path, kind):
    found = train(kind, saved, tmp_path)

    auto = AutoModelForSequenceClassification if kind == "Reward" else AutoModelForCausalLM
    auto.from_pretrained(found)


@pytest.mark.slow
def test_preferences_train_with_a_reference_model(saved, tmp_path):
    model, reference = (AutoModelForCausalLM.from_pretrained(saved) for _ in range(2))
    processor = AutoTokenizer.from_pretrained(saved)

    train("DPO", model, tmp_path, ref_model=reference, processing_class=processor)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "beta"), [("GRPO", 0.0), ("GRPO", 0.1), ("RLOO", 0.1)])
def test_rewards_train_from_a_path(saved, tmp_path, kind, beta):
    train(kind, saved, tmp_path, {**GENERATION, "beta": beta}, reward_funcs=length)


@pytest.mark.slow
def test_reward_model_scores_completions(saved, tmp_path):
    reward = AutoModelForSequenceClassification.from_pretrained(saved, num_labels=1)
    reward.save_pretrained(tmp_path / "reward")
    AutoTokenizer.from_pretrained(saved).save_pretrained(tmp_path / "reward")

    train("GRPO", saved, tmp_path, GENERATION, reward_funcs=str(tmp_path / "reward"))
