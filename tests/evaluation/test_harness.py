"""lm-evaluation-harness: the engine and transformers agree on a local task."""

from __future__ import annotations

import json

import pytest
from packed_models import nano, packed, text, trained

from yocobit.packing import checkpoints

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


def test_engine_and_transformers_agree_on_a_local_task(models, tasks):
    # With BOS token; rolling windows start with transformers' own prefix token.
    names = ["choice", "completion"]

    results, answers = evaluate("yocobit", models["yocobit"], tasks, [*names, "rolling"])
    theirs, their_answers = evaluate("hf", models["hf"], tasks, names, add_bos_token=True)
    rolling, _ = evaluate("hf", models["hf"], tasks, ["rolling"])

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
