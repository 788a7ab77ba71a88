"""Distillation from a yocobit teacher and from transformers models, in complete runs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from training_runs import Killed, assert_same_run, raise_at, records, run, write_toml

from yocobit.config import ConfigError, preset
from yocobit.data.tokenizer import END, load_tokenizer, train_tokenizer
from yocobit.model import Decoder
from yocobit.packing import checkpoints, pack
from yocobit.training import checkpoint, loop
from yocobit.training.checkpoint import RunState
from yocobit.training.config import DistillConfig
from yocobit.training.config import load as load_config
from yocobit.training.distill import Teacher
from yocobit.training.step import Objective


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A short dense run."""
    directory = tmp_path_factory.mktemp("teacher")
    overrides = ["model.weights=dense", "optim.learning_rate=0.01"]
    run(write_toml(directory), directory / "teacher", *overrides)
    return directory / "teacher"


def student(toml: Path, out: Path, teacher: Path, *overrides: str, resume: bool = False) -> Path:
    """Distil into `out`, with the teacher's tokenizer unless [data] specifies one."""
    toml.write_text(toml.read_text().replace("vocab_size = 270\n", ""))
    return run(toml, out, f"distill.teacher={teacher}", *overrides, resume=resume)


def test_divergence_of_a_ternary_student_from_its_dense_teacher_decreases(toml, tmp_path, teacher):
    out = tmp_path / "student"
    saved = student(
        toml, out, teacher, "run.steps=40", "distill.weight=1.0", "optim.learning_rate=0.01"
    )

    divergences = [record["divergence"] for record in records(out)]
    assert sum(divergences[-5:]) < 0.5 * sum(divergences[:5])
    assert checkpoint.load_model(saved).config.weights == "ternary"


def test_student_uses_the_tokenizer_of_its_teacher(toml, tmp_path, teacher):
    saved = student(toml, tmp_path / "student", teacher, "run.steps=1")

    found = load_tokenizer(saved / "tokenizer.json")
    expected = load_tokenizer(checkpoints.find(teacher) / "tokenizer.json")
    assert found.to_str() == expected.to_str()


def test_killed_distillation_resumes_identically(toml, tmp_path, teacher, monkeypatch):
    student(toml, tmp_path / "straight", teacher)
    out = tmp_path / "killed"

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "rate_factor", raise_at(7))
        student(toml, out, teacher)
    student(toml, out, teacher, resume=True)

    assert_same_run(out, tmp_path / "straight")


def test_resume_with_another_teacher_is_refused(toml, tmp_path, teacher):
    student(toml, tmp_path / "student", teacher, "run.steps=1")
    other = teacher / "checkpoints" / "step-000008"
    assert other.is_dir()

    with pytest.raises(ConfigError, match="cannot resume, the teacher has changed"):
        student(toml, tmp_path / "student", other, "run.steps=1", resume=True)
    with pytest.raises(ConfigError, match=r"distill.weight was 0.5 and is now 0.25"):
        student(
            toml, tmp_path / "student", teacher, "distill.weight=0.25", "run.steps=1", resume=True
        )


def test_teacher_with_another_tokenizer_is_refused(toml, tmp_path, teacher):
    message = r"vocabulary is not the run's: token 260 is '.*' in .* but None in the run's; omit"

    with pytest.raises(ConfigError, match=message):
        student(toml, tmp_path / "student", teacher, "data.vocab_size=260")


def test_missing_teacher_is_refused(toml, tmp_path):
    with pytest.raises(ConfigError, match="absent: no such run or checkpoint"):
        student(toml, tmp_path / "student", tmp_path / "absent")


def test_model_saved_by_transformers_is_the_same_teacher_as_its_checkpoint(toml, tmp_path, teacher):
    transformers = pytest.importorskip("transformers")
    import yocobit.hf  # noqa: F401

    saved, directory = checkpoints.find(teacher), tmp_path / "saved"
    transformers.AutoModelForCausalLM.from_pretrained(saved).save_pretrained(directory)
    transformers.AutoTokenizer.from_pretrained(saved).save_pretrained(directory)

    student(toml, tmp_path / "student", directory, "run.steps=2")
    student(toml, tmp_path / "expected", teacher, "run.steps=2")

    assert records(tmp_path / "student") == records(tmp_path / "expected")


def test_packed_model_as_teacher_is_refused(teacher, tmp_path):
    path = pack(teacher, tmp_path / "packed").path

    with pytest.raises(ConfigError, match=r"packed: is a packed model, .* name the run or check"):
        Teacher(DistillConfig(teacher=str(path)))
    with pytest.raises(ConfigError, match="must be a run or a checkpoint but is a file"):
        Teacher(DistillConfig(teacher=str(path / "model.safetensors")))


def saved_model(tmp_path: Path, model: Decoder) -> Path:
    tokenizer = train_tokenizer(["one text"], 257)
    return checkpoint.save(tmp_path / "run", RunState("hash"), model, {}, {}, tokenizer, 1)


def test_gradients_of_the_student_equal_autograd_of_the_formula_in_float64(tmp_path):
    torch.manual_seed(0)
    shape = preset("nano").replace(vocab_size=257)
    teacher_model = Decoder(shape.replace(weights="dense", layers=("full", "full")))
    config = DistillConfig(teacher=str(saved_model(tmp_path, teacher_model)), temperature=2.0)
    teacher = Teacher(config)
    teacher.model.decoder.double()
    model = Decoder(shape).double()
    tokens = torch.randint(257, (2, 10), generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    resets = torch.zeros(2, 9, dtype=torch.bool)
    resets[0, 4] = True

    loss, terms = Objective(model, 0.0, teacher)(inputs, targets, resets)
    gradients = torch.autograd.grad(loss, list(model.parameters()))

    log_q = model.head(model.hidden(inputs, resets)).log_softmax(dim=-1)
    nats = -log_q.gather(-1, targets[..., None]).sum()
    teacher_model.double()
    teacher_logits = teacher_model.head(teacher_model.hidden(inputs, resets))
    p = (teacher_logits / 2).softmax(dim=-1).detach()
    log_q_soft = (model.head(model.hidden(inputs, resets)) / 2).log_softmax(dim=-1)
    divergence = (p * (p.log() - log_q_soft)).sum()
    expected = 0.5 * nats + 0.5 * 4 * divergence
    torch.testing.assert_close(loss, expected)
    without_experts = torch.zeros_like(nats)
    torch.testing.assert_close(terms, torch.stack([nats, divergence, without_experts]).detach())
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, list(model.parameters())))


def test_teacher_is_not_trained(tmp_path):
    model = Decoder(preset("nano").replace(vocab_size=257))
    teacher = Teacher(DistillConfig(teacher=str(saved_model(tmp_path, model))))

    objective = Objective(model, 0.0, teacher)

    assert {id(p) for p in objective.parameters()} == {id(p) for p in model.parameters()}
    assert not any(p.requires_grad for p in teacher.model.decoder.parameters())


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def published(request, tmp_path_factory) -> Path:
    """A directory saved by transformers, with a tokenizer trained by yocobit."""
    transformers = pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp(request.param)
    shape = {
        "vocab_size": 300,  # more than the tokenizer has
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    torch.manual_seed(0)
    if request.param == "llama":
        config = transformers.LlamaConfig(**shape)
    else:  # caps its logits
        config = transformers.Gemma2Config(**shape, final_logit_softcapping=0.5)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer = train_tokenizer(["def return x y + \n"] * 9, 270)
    (directory / "tokenizer.json").write_text(tokenizer.to_str())
    return directory


def test_logits_of_a_published_teacher_equal_those_in_slices(published):
    from transformers import AutoModelForCausalLM

    tokens = torch.randint(257, (2, 9), generator=torch.Generator().manual_seed(0))
    model = AutoModelForCausalLM.from_pretrained(published, dtype=torch.float32)
    with torch.no_grad():
        expected = model(input_ids=tokens).logits.flatten(0, 1)

    output = Teacher(DistillConfig(teacher=str(published))).output(tokens, None)
    slices = [output.head(output.hidden[i : i + 5]) for i in range(0, 18, 5)]

    # float32 dot products of 32 elements, summed in another order.
    torch.testing.assert_close(torch.cat(slices), expected, rtol=1e-5, atol=1e-6)


def test_published_teacher_attends_to_nothing_before_a_reset(published):
    teacher = Teacher(DistillConfig(teacher=str(published)))
    tokens = torch.randint(257, (2, 9), generator=torch.Generator().manual_seed(0))
    resets = torch.zeros(2, 9, dtype=torch.bool)
    resets[:, 0] = resets[0, 3] = True

    found = teacher.output(tokens, resets).hidden.unflatten(0, (2, 9))

    parts = [teacher.output(tokens[:1, a:b], None).hidden for a, b in ((0, 3), (3, 9))]
    torch.testing.assert_close(found[0], torch.cat(parts))
    torch.testing.assert_close(found[1], teacher.output(tokens[1:], None).hidden)


def test_student_of_a_published_teacher_learns_from_it(toml, tmp_path, published):
    student(toml, tmp_path / "student", published, "run.steps=2")

    divergences = [record["divergence"] for record in records(tmp_path / "student")]
    assert len(divergences) == 2 and min(divergences) > 0


def rename_end(directory: Path, eos: str | None) -> None:
    """Rename the end token as in Llama; `eos` is the eos_token of the tokenizer_config.json."""
    path = directory / "tokenizer.json"
    path.write_text(path.read_text().replace(END, "</s>"))
    if eos is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))


def test_end_token_of_a_teacher_with_another_name_is_renamed(toml, tmp_path, published):
    directory = tmp_path / "published"
    shutil.copytree(published, directory)
    rename_end(directory, "</s>")

    saved = student(toml, tmp_path / "student", directory, "run.steps=1")

    given, used = (Tokenizer.from_file(f"{d}/tokenizer.json") for d in (directory, saved))
    assert used.token_to_id(END) == given.token_to_id("</s>") == 0
    assert given.get_vocab().keys() ^ used.get_vocab().keys() == {END, "</s>"}


def test_teacher_needs_no_end_token_if_the_run_has_a_tokenizer(toml, tmp_path, published):
    directory, own = tmp_path / "published", tmp_path / "tokenizer.json"
    shutil.copytree(published, directory)
    own.write_text((directory / "tokenizer.json").read_text())
    rename_end(directory, None)
    (directory / "generation_config.json").unlink()  # it names the end token by its id

    student(toml, tmp_path / "student", directory, f"data.tokenizer={own}", "run.steps=1")

    assert "divergence" in records(tmp_path / "student")[0]
    with pytest.raises(ConfigError, match=r"tokenizer.json: has no token <\|endoftext\|>"):
        student(toml, tmp_path / "other", directory, "run.steps=1")


def test_teacher_without_a_tokenizer_is_refused(tmp_path, published):
    shutil.copytree(published, tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()

    with pytest.raises(ConfigError, match=r"tokenizer.json: no such file; save the teacher's"):
        Teacher(DistillConfig(teacher=str(tmp_path / "bare")))


def test_directory_without_a_causal_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    (tmp_path / "tokenizer.json").write_text(train_tokenizer(["x"], 257).to_str())

    with pytest.raises(ConfigError, match="cannot be read as a causal model") as caught:
        Teacher(DistillConfig(teacher=str(tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill.weight=0", r"\[distill\]: weight must be above 0 and at most 1 but is 0"),
        ("distill.weight=2", r"\[distill\]: weight must be above 0 and at most 1 but is 2"),
        ("distill.temperature=0", r"\[distill\]: temperature must be above 0"),
    ],
)
def test_invalid_distillation_setting_is_refused(toml, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(toml, ["distill.teacher=x", override])


def test_distillation_without_a_teacher_is_refused(toml):
    with pytest.raises(ConfigError, match=r"\[distill\]: key 'teacher' is missing"):
        load_config(toml, ["distill.weight=0.5"])
