"""lm-evaluation-harness over HTTP returns what `yocobit eval` measures."""

from __future__ import annotations

import json

import pytest
import servers
from packed_models import text

from yocobit import Engine
from yocobit.evaluation.native import NativeScorer
from yocobit.evaluation.perplexity import perplexity
from yocobit.serving import ServerSettings

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def documents() -> list[str]:
    return [part for part in text().split("\n\n") if len(part) > 80][:6]


@pytest.fixture
def tasks(documents, tmp_path):
    """Two tasks over a local file, as lm-eval's YAML (of which JSON is a part)."""
    with (tmp_path / "lines.jsonl").open("w") as file:
        for document in documents:
            words = document.split()
            record = {"start": " ".join(words[:6]), "choices": [words[6], "zebra"]}
            file.write(json.dumps({**record, "text": document}) + "\n")
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "lines.jsonl")},
            "cache_dir": str(tmp_path / "cache"),
        },
        "test_split": "test",
    }
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": ""}
    rolling |= {"doc_to_target": "{{text}}", "metric_list": [{"metric": "bits_per_byte"}]}
    choice = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}"}
    choice |= {"doc_to_text": "{{start}}", "doc_to_target": "0", "metric_list": [{"metric": "acc"}]}
    for name, task in {"rolling": rolling, "choice": choice}.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps({**shared, "task": name, **task}))
    return tmp_path


def test_local_completions_equal_yocobit_eval(documents, tasks, monkeypatch):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    engine = Engine.load(threads=1)
    ours = perplexity(NativeScorer(engine, "f32"), documents)
    with servers.running(ServerSettings(threads=1, cache="f32")) as server:
        found = simple_evaluate(
            model="local-completions",
            model_args={"model": "tiny", "base_url": f"{server.url}/v1/completions"},
            tasks=["rolling", "choice"],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            bootstrap_iters=0,
        )

    # Logits are the same bits; they are summed per document there, per window here.
    assert found["results"]["rolling"]["bits_per_byte,none"] == pytest.approx(
        ours.bits_per_byte, rel=1e-9
    )
    for sample, document in zip(found["samples"]["choice"], documents, strict=True):
        words = document.split()
        context = engine.tokenizer.encode(" ".join(words[:6])).ids
        for (nats, _), word in zip(sample["filtered_resps"], (words[6], "zebra"), strict=True):
            whole = engine.tokenizer.encode(" ".join([*words[:6], word])).ids
            expected = -sum(NativeScorer(engine, "f32").nats(whole, len(context)))
            assert nats == pytest.approx(expected, rel=1e-6)  # its sums are float32
