"""Perplexity: windows, agreement of the backends, and messages."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from packed_models import as_packed, nano, packed, text, tokenizer, trained
from typer.testing import CliRunner

from yocobit import cli, evaluation
from yocobit.config import ConfigError
from yocobit.data.tokenizer import END
from yocobit.evaluation.native import negative_log_likelihood
from yocobit.evaluation.perplexity import windows
from yocobit.evaluation.scorer import CHUNK


@pytest.fixture(scope="module")
def trained_model():
    return trained(nano("yoco-gret", "ternary"))


@pytest.fixture(scope="module")
def paths(trained_model, tmp_path_factory):
    """A packed model and the run that it was packed from."""
    directory = tmp_path_factory.mktemp("evaluation")
    model = packed(trained_model, directory)
    return {"native": model.path, "torch": directory / "run"}


@pytest.fixture(params=["native", "torch"])
def scorer(request, paths) -> evaluation.Scorer:
    return evaluation.open_scorer(paths[request.param])


def run(*arguments):
    return CliRunner().invoke(cli.app, ["eval", *map(str, arguments)])


@pytest.mark.parametrize("length", [1, 2, 9, 10, 13, 14, 30])
def test_windows_score_each_token_once_from_half_a_context(length):
    context = 8
    tokens = list(range(length))

    scored = []
    for window, n_context in windows(tokens, context):
        assert len(window) <= context + 1
        assert n_context == 1 or n_context >= context // 2
        assert window == tokens[window[0] : window[0] + len(window)]
        scored += window[n_context:]

    assert scored == tokens[1:]


def test_backends_agree_within_a_thousandth(paths):
    documents = [text(), "A short one.", ""]

    results = [
        evaluation.perplexity(evaluation.open_scorer(paths[backend]), documents, context=512)
        for backend in ("native", "torch")
    ]

    assert results[0].n_tokens == results[1].n_tokens
    assert results[0].bits_per_byte == pytest.approx(results[1].bits_per_byte, rel=1e-3)
    assert results[0].perplexity == pytest.approx(results[1].perplexity, rel=1e-3)


def test_scorers_return_the_cross_entropy_of_the_model(scorer, trained_model):
    tokens = [scorer.bos_token, *scorer.encode(text())][: 2 * CHUNK + 5]
    ids = torch.tensor(tokens)
    model = trained_model if scorer.backend == "torch" else as_packed(trained_model)
    with torch.no_grad():
        expected = F.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="none")

    for n_context in (1, CHUNK + 3, len(tokens) - 1):
        nats = scorer.nats(tokens, n_context)

        # The engine sums in another order, so a few activations round differently.
        tolerance = 1e-5 if scorer.backend == "torch" else 0.05
        np.testing.assert_allclose(nats, expected[n_context - 1 :], rtol=0, atol=tolerance)
    assert len(scorer.nats(tokens[:1], 1)) == 0


def test_chunks_and_windows_cover_documents(scorer):
    documents = [text()[:1000], "é"]

    result = evaluation.perplexity(scorer, documents, context=64)

    tokens = [scorer.encode(document) for document in documents]
    nats = sum(
        scorer.nats(window, n_context).sum()
        for document in tokens
        for window, n_context in windows([scorer.bos_token, *document], 64)
    )
    assert result.n_tokens == sum(map(len, tokens))
    assert result.n_bytes == 1002
    assert result.perplexity == pytest.approx(math.exp(nats / result.n_tokens))
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / 1002)


def test_progress_is_the_bytes_of_the_documents_that_were_scored(scorer):
    done: list[int] = []

    result = evaluation.perplexity(scorer, [text()[:1000], "é"], 64, done.append)

    assert done == sorted(done) and len(set(done)) > 3
    assert done[-1] == result.n_bytes == 1002


def test_text_in_pieces_has_the_perplexity_of_the_whole(scorer):
    whole = text()[:1000]

    in_pieces = evaluation.perplexity(scorer, [(whole[:300], whole[300:], "")], context=64)

    assert in_pieces == evaluation.perplexity(scorer, [whole], context=64)


class OneTokenAByte:
    """A scorer of long texts; -log p is the number of the token."""

    backend, bos_token, n_encoded = "native", 0, 0

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def encode_pieces(self, pieces):
        for piece in pieces:
            self.n_encoded += len(piece)
            yield piece.encode()

    def nats(self, tokens, n_context):
        return np.array(tokens[n_context:]) * self.scale


def test_long_document_is_tokenised_while_it_is_scored():
    scorer = OneTokenAByte()
    n_ahead = []

    def pieces():
        for i in range(100):
            n_ahead.append(scorer.n_encoded - 1000 * i)
            yield "a" * 1000

    result = evaluation.perplexity(scorer, [pieces()], context=64)

    assert result == evaluation.Perplexity(1, 100_000, 100_000, 97.0 * 100_000)
    assert n_ahead == [0] * 100


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(scale):
    with pytest.raises(
        ConfigError, match=r"^model: its logits must be finite but -log p is (nan|inf)"
    ):
        evaluation.perplexity(OneTokenAByte(scale), ["ab"])


def test_negative_log_likelihood_of_infinite_logits_is_not_finite_and_does_not_warn(recwarn):
    logits = np.array([[0, np.inf], [0, -np.inf], [np.nan, 0], [0, np.inf]], np.float32)

    nats = negative_log_likelihood(logits, np.array([0, 1, 1, 1]))

    assert not np.isfinite(nats).any() and len(recwarn) == 0


def test_perplexity_beyond_the_range_of_floats_is_null_in_json():
    result = evaluation.perplexity(OneTokenAByte(100.0), ["ab"])

    assert result.perplexity == math.inf
    assert result.to_dict()["perplexity"] is None
    assert "inf per token" in result.describe()[0]
    json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize("context", [-1, 0, 1, (1 << 24) + 1, 10**30])
def test_context_out_of_range_is_refused(context):
    with pytest.raises(ConfigError, match=r"context must be at (least|most) [0-9,]+ tokens but"):
        evaluation.perplexity(OneTokenAByte(), ["ab"], context)


def test_end_token_in_a_text_is_encoded_as_plain_text(scorer):
    assert scorer.bos_token not in scorer.encode(f"a{END}b")
    assert scorer.bos_token == tokenizer().token_to_id(END)


@pytest.mark.parametrize("end", [[0, 5], 0])
def test_end_token_precedes_documents_of_a_model_without_bos_token(paths, tmp_path, end):
    copy = Path(shutil.copytree(paths["native"], tmp_path / "model"))
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))

    without = evaluation.open_scorer(copy)

    assert without.bos_token == 0 == evaluation.open_scorer(paths["native"]).bos_token
    (copy / "generation_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="must have a bos_token_id or an eos_token_id, which"):
        evaluation.open_scorer(copy)


def test_old_name_of_the_bos_token_warns(scorer):
    with pytest.warns(DeprecationWarning, match=r"is now Scorer\.bos_token"):
        assert scorer.begin == scorer.bos_token


def test_negative_log_likelihood_equals_that_of_float64():
    random = np.random.default_rng(0)
    logits = (random.normal(size=(5, 1000)) * 30).astype(np.float32)
    targets = random.integers(1000, size=5)

    nats = negative_log_likelihood(logits, targets)

    exact = logits.astype(np.float64)
    exact = np.log(np.exp(exact - exact.max(1, keepdims=True)).sum(1)) + exact.max(1)
    exact -= logits[np.arange(5), targets]
    # A float32 exponential is off by some 1e-7, and so is the logarithm of a sum of them.
    np.testing.assert_allclose(nats, exact, rtol=0, atol=1e-6)


def test_eval_reads_text_and_jsonl(paths, tmp_path):
    lines = [text()[:300], "line separators \u2028 stay"]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in lines)
    )
    for name, line in zip("bc", lines, strict=True):
        (tmp_path / f"{name}.txt").write_text(line)

    of_lines = run(paths["native"], tmp_path / "a.jsonl", "--json")
    of_files = run(paths["native"], tmp_path / "b.txt", tmp_path / "c.txt", "--json")

    assert json.loads(of_lines.stdout) == json.loads(of_files.stdout)
    assert json.loads(of_lines.stdout)["documents"] == 2
    assert json.loads(of_lines.stdout)["backend"] == "native"


def test_eval_of_a_directory_counts_skipped_files(paths, tmp_path):
    (tmp_path / "latin.py").write_bytes(b"# \xe9")
    (tmp_path / "a.py").write_text("answer = 42")
    (tmp_path / "a.csv").write_text("answer,42")

    shown = run(paths["native"], tmp_path, "--json")

    assert json.loads(shown.stdout)["documents"] == 1
    assert shown.stderr == (
        "skipped 1 .py files that are not UTF-8\nignored 1 files of other kinds: 1 .csv\n"
    )


def test_eval_shows_a_table(paths, tmp_path):
    (tmp_path / "a.txt").write_text(text()[:500])

    shown = run(paths["torch"], tmp_path / "a.txt", "--context", 32).stdout

    assert "perplexity" in shown and "bits per byte" in shown and "500 bytes" in shown


@pytest.mark.parametrize(
    "name, content, rule",
    [
        ("a.txt", b"\xff", "a.txt: is not UTF-8 (byte 0xff at 0)"),
        ("a.py", b"# \xe9", "a.py: is not UTF-8 (byte 0xe9 at 2)"),
        ("a.txt", b"", "documents must hold text"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}', "a.jsonl:2: must be an object with a string"),
        ("a.jsonl", b"{", "a.jsonl:1: is not valid JSON"),
        ("absent.txt", None, "absent.txt: no such file or directory"),
    ],
)
def test_invalid_documents_are_rejected_by_name(paths, tmp_path, name, content, rule):
    if content is not None:
        (tmp_path / name).write_bytes(content)

    error = run(paths["native"], tmp_path / name).exception

    assert isinstance(error, ConfigError) and rule in str(error)


@pytest.mark.parametrize(
    "model, options, rule",
    [
        ("native", ["--backend", "torch"], "is a packed model, which only the native backend runs"),
        ("torch", ["--backend", "native"], "is a checkpoint, not a packed model"),
        ("torch", ["--cache", "int8"], "cache must not be given with the PyTorch backend"),
    ],
)
def test_invalid_options_are_rejected(paths, tmp_path, model, options, rule):
    (tmp_path / "a.txt").write_text("some text")

    error = run(paths[model], tmp_path / "a.txt", *options).exception

    assert isinstance(error, ValueError) and rule in str(error)


@pytest.mark.parametrize("name", ["best", "last"])
def test_checkpoint_is_named_as_for_pack(paths, tmp_path, name):
    (tmp_path / "a.txt").write_text("some text")

    result = run(paths["torch"] / "checkpoints" / name, tmp_path / "a.txt", "--json")

    if name == "last":
        assert json.loads(result.output)["bytes"] == len("some text")
    else:  # the run had no evaluation
        assert str(result.exception).endswith("best: the run has no such checkpoint yet")


@pytest.mark.parametrize("context", [1, 0, -1])
def test_context_below_two_tokens_is_rejected(paths, tmp_path, context):
    (tmp_path / "a.txt").write_text("some text")

    result = run(paths["native"], tmp_path / "a.txt", "--context", context)

    assert result.exit_code == 2 and f"is {context}" in result.output
    with pytest.raises(ConfigError, match=f"context must be at least 2 tokens but is {context}"):
        evaluation.perplexity(None, [], context)


@pytest.mark.parametrize(
    "options", [[], ["--cache", "int4"], ["--attention", "full"], ["--backend", "torch"]]
)
def test_missing_model_is_rejected_by_its_path(tmp_path, options):
    (tmp_path / "a.txt").write_text("some text")

    error = run(tmp_path / "absent", tmp_path / "a.txt", *options).exception

    assert str(error) == f"{tmp_path / 'absent'}: no such packed model, run or checkpoint"


def test_evaluation_imports_neither_torch_nor_transformers():
    imports = "yocobit.evaluation, yocobit.cli, yocobit.data.corpus"
    program = f"import sys, {imports}; print(*sys.modules)"

    modules = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()

    assert not {"torch", "transformers", "lm_eval"} & set(modules)
