"""TrainConfig: valid TOML files, and one-line errors about invalid ones."""

import json
from pathlib import Path

import pytest
from training_runs import TOML

from yocobit.config import ConfigError
from yocobit.pretrained import TINY
from yocobit.training.config import TrainConfig
from yocobit.training.config import load as load_config
from yocobit.training.schedule import rate_factor

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train=[]", r"\[data\]: train must name at least one file or directory"),
        ("data.train=x", r"\[data\]: train must be a list, each item a string or a table but is"),
        ("data.valid=[]", r"\[data\]: give either valid \(files\) or valid_every"),
        ("data.valid_every=1", r"\[data\]: valid_every must be at least 2 but is 1"),
        ("data.vocab_size=256", r"vocab_size must be at least 257.* but is 256"),
        ("data.context=0", r"\[data\]: context must be at least 1 but is 0"),
        ("data.words=1", r"\[data\]: unknown key 'words'; known keys: train, valid"),
        ("optim.optimizer=sgd", r"\[optim\]: optimizer must be one of 'adam', 'adamw', 'muon'"),
        ("optim.learning_rate=0", r"\[optim\]: learning_rate must be above 0 but is 0"),
        ("optim.learning_rate=nan", r"\[optim\]: learning_rate must be above 0 but is nan"),
        ("optim.head_learning_rate=-1", r"head_learning_rate must be above 0 but is -1"),
        ("optim.betas=[0.9]", r"\[optim\]: betas must be two numbers"),
        ("optim.betas=[0.9, 1.0]", r"\[optim\]: betas must be two numbers"),
        ("optim.eps=0", r"\[optim\]: eps must be above 0"),
        ("optim.momentum=1", r"\[optim\]: momentum must be at least 0 and below 1"),
        ("optim.weight_decay=-0.1", r"\[optim\]: weight_decay must be at least 0"),
        ("optim.grad_clip=-1", r"\[optim\]: grad_clip must be at least 0"),
        ("optim.z_loss=-1", r"\[optim\]: z_loss must be at least 0 but is -1"),
        ("optim.spike_factor=1", r"\[optim\]: spike_factor must be 0 or above 1 but is 1"),
        ("optim.max_skips=0", r"\[optim\]: max_skips must be at least 1 but is 0"),
        ("optim.recipe=gpt", r"\[optim\]: recipe must be one of bitnet but is 'gpt'"),
        (
            "run.precision=half",
            r"\[run\]: precision must be one of 'float32', 'bfloat16' .*is 'half'",
        ),
        ("optim.batch_size=0", r"\[optim\]: batch_size must be between 1 and 1048576 but is 0"),
        ("optim.accumulation=10000000", r"accumulation must be between 1 and 1048576 but is 1000"),
        ("optim.batch_size=1.5", r"\[optim\]: batch_size must be an integer but is 1.5"),
        ("optim.accumulation=0", r"\[optim\]: accumulation must be between 1 and 1048576 but is 0"),
        ("schedule.kind=poly", r"\[schedule\]: kind must be one of 'step', 'linear'"),
        ("schedule.warmup_steps=-1", r"\[schedule\]: warmup_steps must be at least 0"),
        ("schedule.step_size=0", r"\[schedule\]: step_size must be at least 1"),
        ("schedule.min_ratio=2", r"\[schedule\]: min_ratio must be between 0 and 1"),
        ("schedule.gamma=-1", r"\[schedule\]: gamma must be between 0 and 1"),
        ("schedule.second_ratio=2", r"\[schedule\]: second_ratio must be between 0 and 1"),
        ("schedule.decay_fraction=0", r"decay_fraction must be above 0 and at most 1 but is 0"),
        ("run.steps=0", r"\[run\]: steps must be at least 1 but is 0"),
        ("run.minutes=0", r"\[run\]: minutes must be above 0 but is 0"),
        ("run.eval_every=0", r"\[run\]: eval_every must be at least 1"),
        ("run.eval_tokens=0", r"\[run\]: eval_tokens must be at least 1"),
        ("run.sample_every=-1", r"\[run\]: sample_every must be at least 0"),
        ("run.sample_tokens=0", r"\[run\]: sample_tokens must be at least 1"),
        ("run.checkpoint_every=0", r"\[run\]: checkpoint_every must be at least 1"),
        ("run.keep=0", r"\[run\]: keep must be at least 1"),
        ("run.seed=-1", r"\[run\]: seed must be at least 0"),
        ("run.threads=100000", r"\[run\]: threads must be between 1 and 1024 but is 100000"),
        ("run.threads=0", r"\[run\]: threads must be between 1 and 1024 but is 0"),
        ("run.prompt=1", r"\[run\]: prompt must be a string but is 1"),
        ("model.preset=huge", r"preset must be one of nano, tiny, .* but is 'huge'"),
        ("model.width=1", r"\[model\]: unknown key 'width'"),
        ("model.d_model=12", r"\[model\]: d_model must be a multiple of 8 but is 12"),
        ("nothing.x=1", r"unknown section 'nothing'; known: model, data, optim"),
        ("run.steps", r"override must look like section.key=value but is 'run.steps'"),
        ("steps=1", r"override must look like section.key=value but is 'steps=1'"),
    ],
)
def test_invalid_setting_is_refused_in_one_line(toml, override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(toml, [override])

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "run.toml: no such file"),
        ("[run", "run.toml: is not valid TOML"),
        ("run = 1", "run.toml: 'run' must be a section but is 1"),
        ("[data]\ntrain = ['x']", r"give either valid \(files\) or valid_every"),
        ("[run]\nsteps = 1", r"\[data\]: key 'train' is missing"),
        (TOML.replace("steps = 12", ""), r"\[run\]: give either steps or minutes"),
        (TOML.replace("steps = 12", "steps = 1\nminutes = 1"), "give either steps or minutes"),
        (TOML.replace("[optim]", "tokenizer = 'x'\n[optim]"), "either vocab_size or tokenizer"),
        (
            TOML.replace('preset = "nano"', "").replace("vocab_size = 270", ""),
            r"\[model\]: give data.vocab_size, data.tokenizer or a preset",
        ),
        (
            TOML.replace('[model]\npreset = "nano"\nlayers = ["retention", "cross"]', ""),
            r"run.toml: has no section \[model\]; add one, with a preset \(nano, .* with --init",
        ),
        (TOML.replace('preset = "nano"', ""), r"\[model\]: key 'd_model' is missing"),
    ],
)
def test_invalid_file_is_refused_in_one_line(toml, content, message):
    if content is None:
        toml.unlink()
    else:
        toml.write_text(content)

    with pytest.raises(ConfigError, match=message):
        load_config(toml)


def test_directory_as_configuration_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is a directory; name a TOML file"):
        load_config(tmp_path)


def test_paths_are_relative_to_the_file_and_of_overrides_to_the_working_directory(
    toml, tmp_path, monkeypatch
):
    monkeypatch.chdir("/")

    assert load_config(toml).data.train == (str(tmp_path / "train.txt"),)
    assert load_config(toml, ["data.train=['x.txt']"]).data.train == ("/x.txt",)


def test_override_replaces_its_alternative(toml):
    assert load_config(toml, ["run.minutes=2"]).run.steps is None
    assert load_config(toml, ["data.valid_every=9"]).data.valid == ()


def test_config_survives_a_round_trip_through_its_dictionary(toml):
    config = load_config(toml, ["optim.betas=[0.8, 0.9]"])

    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())), "x") == config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_configuration_of_the_repository_is_valid(path):
    init = TINY if path.stem == "chat" else None  # for fine-tuning: it has no [model]

    assert load_config(path, init=init).model.weights == (
        "sign" if path.stem == "demonstration" else "ternary"
    )


def test_recipe_has_the_settings_of_bitnet_and_the_file_overrides_them(toml):
    toml.write_text(toml.read_text().replace('optimizer = "muon"', 'recipe = "bitnet"'))

    config = load_config(toml, ["optim.weight_decay=0.05", "schedule.kind=two_stage"])

    assert (config.optim.optimizer, config.optim.betas) == ("adamw", (0.9, 0.95))
    assert (config.optim.learning_rate, config.optim.weight_decay) == (1.5e-3, 0.05)
    assert (config.schedule.kind, config.schedule.warmup_steps) == ("two_stage", 2)
    assert TrainConfig.from_dict(config.to_dict(), "x") == config


def test_rates_of_the_bitnet_recipe_are_two_lines_to_zero(toml):
    toml.write_text(toml.read_text().replace("warmup_steps = 2", "").replace('kind = "linear"', ""))
    config = load_config(toml, ["optim.recipe=bitnet"])
    total = 2000

    def rate(step: int) -> float:
        return config.optim.learning_rate * rate_factor(config.schedule, step, total)

    after = [step - 375 for step in (500, 1000, 1200, 1999)]
    lines = [1.5e-3, 1.5e-3, 1e-3, 1e-3]
    expected = [line * (1 - a / (total - 375)) for line, a in zip(lines, after, strict=True)]
    assert [rate(step) for step in (500, 1000, 1200, 1999)] == pytest.approx(expected)
