"""lm-evaluation-harness: the engine and transformers agree on a local task."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
from packed_models import nano, packed, text, trained

from yocobit.data.tokenizer import END
from yocobit.errors import UserError
from yocobit.packing import checkpoints
from yocobit.pretrained import TINY
from yocobit.text.chat_template import ChatTemplate

pytest.importorskip("lm_eval")
MAX_LENGTH = 16  # tokens, fewer than in the texts and in some prompts with continuations

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Three tasks over one local file, as lm-eval's YAML (of which JSON is a part)."""
    directory = tmp_path_factory.mktemp("tasks")
    lines = [line for line in text().splitlines() if len(line.split()) > 6][:8]
    with (directory / "lines.jsonl").open("w") as file:
        for line in lines:
            words = line.split()
            record = {"start": " ".join(words[:4]), "choices": [words[4], "zebra", "of the of"]}
            file.write(json.dumps({**record, "text": line}) + "\n")
    data = {"test": str(directory / "lines.jsonl")}
    cache = str(directory / "cache")
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": data, "cache_dir": cache},
        "test_split": "test",
        "doc_to_text": "{{start}}",
    }
    choice = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}"}
    choice |= {"doc_to_target": "0", "metric_list": [{"metric": "acc"}]}
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": ""}
    rolling |= {"doc_to_target": "{{text}}", "metric_list": [{"metric": "bits_per_byte"}]}
    completion = {"output_type": "generate_until", "doc_to_target": "{{choices[0]}}"}
    completion |= {"generation_kwargs": {"until": ["\n", " of"], "max_gen_toks": 6}}
    completion |= {"metric_list": [{"metric": "exact_match"}]}
    for name, task in {"choice": choice, "rolling": rolling, "completion": completion}.items():
        content = json.dumps({**shared, "task": name, **task})
        (directory / f"{name}.yaml").write_text(content)
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A packed model and its checkpoint; dense, so that they differ only in the order of sums."""
    directory = tmp_path_factory.mktemp("harness")
    model = packed(trained(nano("yoco-gret", "dense")), directory)
    return {"yocobit": model.path, "hf": checkpoints.find(directory / "run")}


def evaluate(model, path, tasks, names, **options):
    """Return the results of lm-eval, and the filtered responses of the model."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    import yocobit.evaluation.harness
    import yocobit.hf  # noqa: F401

    found = simple_evaluate(
        model=model,
        model_args={"pretrained": str(path), "max_length": MAX_LENGTH, **options},
        tasks=names,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
    )
    answers = {
        name: [sample["filtered_resps"] for sample in found["samples"][name]] for name in names
    }
    return found["results"], answers


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


@pytest.fixture(scope="module")
def without_options(models, tasks):
    """The results of all tasks, ours and those of transformers."""
    return {
        name: evaluate(name, path, tasks, ["choice", "completion", "rolling"])
        for name, path in models.items()
    }


def test_engine_and_transformers_agree_on_a_local_task(models, tasks, without_options):
    # With BOS token; rolling windows start with transformers' own prefix token.
    names = ["choice", "completion"]

    results, answers = without_options["yocobit"]
    theirs, their_answers = evaluate("hf", models["hf"], tasks, names, add_bos_token=True)
    rolling, _ = without_options["hf"]

    assert results["choice"]["acc,none"] == theirs["choice"]["acc,none"] > 0.5
    assert answers["completion"] == their_answers["completion"]
    for ours, other in zip(answers["choice"], their_answers["choice"], strict=True):
        assert [is_greedy for _, is_greedy in ours] == [is_greedy for _, is_greedy in other]
        log_p = [log_p for log_p, _ in ours]
        assert log_p == pytest.approx([log_p for log_p, _ in other], rel=1e-4)
    ours, other = (found["rolling"]["bits_per_byte,none"] for found in (results, rolling))
    assert ours == pytest.approx(other, rel=1e-4)


def test_attention_argument_reaches_the_engine(models):
    from yocobit.evaluation.harness import HarnessModel

    model = HarnessModel(str(models["yocobit"]), attention="index:128")

    assert model._engine.config.attention == "index:128"


def test_engine_and_transformers_agree_without_options(without_options):
    results, answers = without_options["yocobit"]
    theirs, their_answers = without_options["hf"]

    assert answers["completion"] == their_answers["completion"]
    assert results["choice"]["acc,none"] == theirs["choice"]["acc,none"]
    ours, other = (found["rolling"]["bits_per_byte,none"] for found in (results, theirs))
    assert ours == pytest.approx(other, rel=1e-4)


def test_engine_and_transformers_agree_without_a_bos_token(models, tasks, tmp_path):
    copy = Path(shutil.copytree(models["yocobit"], tmp_path / "model"))
    file = copy / "generation_config.json"
    fields = json.loads(file.read_text())
    assert fields.pop("bos_token_id") == fields["eos_token_id"]
    file.write_text(json.dumps(fields))
    names = ["choice", "completion", "rolling"]

    results, answers = evaluate("yocobit", copy, tasks, names)
    theirs, their_answers = evaluate("hf", models["hf"], tasks, names, add_bos_token=False)

    assert answers["completion"] == their_answers["completion"]
    for ours, other in zip(answers["choice"], their_answers["choice"], strict=True):
        log_p = [log_p for log_p, _ in ours]
        assert log_p == pytest.approx([log_p for log_p, _ in other], rel=1e-4)
    ours, other = (found["rolling"]["bits_per_byte,none"] for found in (results, theirs))
    assert ours == pytest.approx(other, rel=1e-4)


def test_the_end_token_precedes_an_empty_context_without_a_bos_token(tmp_path):
    from yocobit.evaluation.harness import HarnessModel

    copy = Path(shutil.copytree(TINY, tmp_path / "model"))
    (copy / "generation_config.json").write_text('{"eos_token_id": [0]}')
    model = HarnessModel(str(copy), threads=1)

    assert model.tok_encode("") == []
    assert model._encode_pair(" ", "light")[0] == [0]
    after = model.tok_encode(" light")
    (expected,) = model._loglikelihood_tokens([(None, [0], after)], True)
    assert answer(model, "loglikelihood", " ", "light") == expected
    assert answer(model, "generate_until", "", {"until": [], "max_gen_toks": 2})


@pytest.fixture(scope="module")
def tiny():
    from yocobit.evaluation.harness import HarnessModel

    return HarnessModel(str(TINY), threads=1)


def answer(model, kind, *arguments):
    from lm_eval.api.instance import Instance

    (found,) = getattr(model, kind)([Instance(kind, {}, arguments, 0)], disable_tqdm=True)
    return found


def test_continuation_that_merges_with_its_context_is_encoded_alone(tiny):
    context, after = tiny._encode_pair("The Pres", "ident")

    assert len(tiny.tok_encode("The President")) == len(context)
    assert after == tiny.tok_encode("ident", add_special_tokens=False)
    log_p, is_greedy = answer(tiny, "loglikelihood", "The Pres", "ident")
    assert log_p < -1 and not is_greedy


@pytest.mark.parametrize("context", ["The", ""])
def test_empty_continuation_is_rejected(tiny, context):
    with pytest.raises(UserError, match="the continuation must not be empty but is ''"):
        answer(tiny, "loglikelihood", context, "")


def test_continuation_longer_than_max_length_is_rejected(models):
    from yocobit.evaluation.harness import HarnessModel

    model = HarnessModel(str(models["yocobit"]), max_length=4)

    with pytest.raises(UserError, match="must have 1 to 4 tokens but has"):
        answer(model, "loglikelihood", "The", " licence and the copyright of the work")
    with pytest.raises(UserError, match="max_gen_toks must be below max_length = 4 but is 9"):
        answer(model, "generate_until", "The", {"until": "x", "max_gen_toks": 9})


def test_one_stop_string_equals_a_list_of_one(tiny):
    settings = {"max_gen_toks": 12, "until": " the"}

    once = answer(tiny, "generate_until", "It is", settings)

    assert once == answer(tiny, "generate_until", "It is", {**settings, "until": [" the"]})
    assert " the" not in once


def test_chats_have_the_tokens_of_the_engine(tiny, monkeypatch):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m.content + eos_token + '\n' }}{% endfor %}"
    )
    names = {"bos_token": END, "eos_token": END}
    monkeypatch.setattr(tiny._engine, "chat_template", ChatTemplate(template, "x", names))

    text = tiny.apply_chat_template(chat)

    assert tiny.tok_encode(text) == tiny._engine.encode_chat(chat)
    assert tiny.apply_chat_template(chat, add_generation_prompt=False) == text[: -len(END) - 1]
    assert tiny.chat_template(True) == template


@pytest.mark.parametrize("spelled", ["a", f"What does {END} mean?"])
def test_a_special_token_in_a_message_is_plain_text(tiny, spelled):
    chat = [{"role": "user", "content": spelled}]

    text = tiny.apply_chat_template(chat)

    expected = tiny._engine.encode_chat(chat)
    assert expected.count(0) == 1
    assert tiny.tok_encode(text) == tiny.tok_encode(pickle.loads(pickle.dumps(text))) == expected
    context, after = tiny._encode_pair(text, f" x{END}")
    assert tiny._engine.tokenizer.decode(context + after, skip_special_tokens=False) == (
        f"{END}{text} x{END}"
    )
    assert expected[: len(context)] == context and 0 not in after
    prefixed = [*chat, {"role": "assistant", "content": f"{spelled} yes"}]
    tokens = tiny.tok_encode(tiny.apply_chat_template(prefixed, add_generation_prompt=False))
    assert tokens == tiny._engine.encode_chat(prefixed, continue_final_message=True)
    assert tokens.count(0) == 1
