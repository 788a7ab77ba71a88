"""ModelConfig: its fields, its JSON form, and its errors for invalid settings."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from yocobit.config import PRESETS, ConfigError, ModelConfig, preset
from yocobit.mixers import parameter_shapes
from yocobit.settings import Settings

NANO = PRESETS["nano"]


@pytest.mark.parametrize("name", PRESETS)
def test_config_survives_a_round_trip_through_json(name, tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(PRESETS[name].to_dict()), encoding="utf-8")

    assert ModelConfig.from_json(path) == PRESETS[name]


FEATURES = {
    "head_size": 128,
    "attention_scale": 0.0625,
    "qk_norm": "after_rope",
    "qkv_bias": True,
    "full_rope_frequencies": (1.0, 0.5),
    "window_rope_frequencies": (1.0, 0.25),
    "rope_factor": 1.25,
    "nope_layers": (0, 2),
    "projection_norms": True,
    "projection_norm_eps": 1e-5,
    "head_norm": True,
    "post_norms": True,
    "embedding_scale": 12.0,
    "residual_scale": 0.5,
    "logit_scale": 0.25,
    "trained_context": 4096,
    "pooling": "last",
    "swiglu_limit": 7.0,
    "exact_activations": True,
}
EXPERTS = {"n_experts": 4, "n_active_experts": 2}
PLAIN = NANO.replace(layers=("window", "window", "full"), full_rope="half", window_rope="half")


def test_dict_holds_every_field_without_the_defaults_of_features():
    fields = {field.name for field in dataclasses.fields(ModelConfig)}

    assert NANO.to_dict().keys() == fields - FEATURES.keys() - EXPERTS.keys()
    assert PLAIN.replace(**FEATURES).to_dict().keys() == fields - EXPERTS.keys()
    with_experts = NANO.replace(ffn="moe", **EXPERTS).to_dict()
    assert with_experts.keys() == fields - FEATURES.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_experts": 4}, "n_experts must be 0 with ffn = 'swiglu' but is 4"),
        ({"ffn": "moe"}, "n_experts must be at least 1 with ffn = 'moe' but is 0"),
        (
            {"ffn": "moe", "n_experts": 4, "n_active_experts": 5},
            "n_active_experts must be at most n_experts = 4 but is 5",
        ),
        ({"ffn": "relu2", "swiglu_limit": 7.0}, "swiglu_limit must be left out with ffn = 'relu2'"),
    ],
)
def test_experts_and_limits_are_checked(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        NANO.replace(**changes)


def test_features_survive_a_round_trip_through_json(tmp_path: Path):
    config = PLAIN.replace(**FEATURES)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()), encoding="utf-8")

    assert ModelConfig.from_json(path) == config


@pytest.mark.parametrize("name", list(FEATURES)[:10])
def test_features_of_self_attention_need_such_a_model(name):
    with pytest.raises(ConfigError, match=f"{name} must be left out unless every layer is"):
        NANO.replace(full_rope="half", window_rope="half", **{name: FEATURES[name]})


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"full_rope_frequencies": (1.0,) * 9}, "at most head size / 2 = 8 values"),
        ({"full_rope_frequencies": (1.0, 0.0)}, "above 0"),
        (
            {"full_rope": "interleaved", "full_rope_frequencies": (1.0,)},
            "unless full_rope is 'half'",
        ),
        ({"nope_layers": (3,)}, "below 3"),
        ({"nope_layers": (1, 1)}, "increasing"),
        ({"head_size": 10}, "a multiple of 4"),
        ({"head_size": 12, "n_heads": 3, "n_kv_heads": 1}, "n_heads times .* a multiple of 8"),
        ({"head_size": 12, "qk_norm": "before_rope"}, "unless head_size is a multiple of 8"),
        ({"head_size": 1024, "n_heads": 128}, "must be at most 65536"),
    ],
)
def test_invalid_features_are_rejected(changes, rule):
    with pytest.raises(ConfigError, match=rule):
        PLAIN.replace(**changes)


def test_head_size_is_independent_of_the_width():
    config = PLAIN.replace(head_size=40, n_heads=3, n_kv_heads=1)

    shapes = parameter_shapes(config)

    assert shapes["layers.2.mixer.q_proj.weight"] == (120, 64)
    assert shapes["layers.2.mixer.k_proj.weight"] == (40, 64)
    assert shapes["layers.2.mixer.sub_norm.weight"] == (120,)
    assert shapes["layers.2.mixer.out_proj.weight"] == (64, 120)


def test_json_may_have_the_keys_of_hugging_face(tmp_path: Path):
    extra = {"model_type": "yocobit", "architectures": ["Decoder"]}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(NANO.to_dict() | extra), encoding="utf-8")

    assert ModelConfig.from_json(path) == NANO


def test_omitted_fields_have_their_defaults():
    required = {
        field.name
        for field in dataclasses.fields(ModelConfig)
        if field.default is dataclasses.MISSING
    }
    fields = {name: value for name, value in NANO.to_dict().items() if name in required}

    assert ModelConfig.from_dict(fields) == NANO.replace(window=ModelConfig.window)


def test_integers_are_accepted_as_numbers():
    config = NANO.replace(rope_theta=500000)

    assert config.rope_theta == 500000.0
    assert type(config.rope_theta) is float


def test_config_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        NANO.d_model = 128


def test_error_of_an_unknown_key_names_its_source_and_the_known_keys():
    fields = NANO.to_dict() | {"d_modle": 64}

    with pytest.raises(ConfigError, match=r"^model\.toml: unknown key 'd_modle'; .* d_model"):
        ModelConfig.from_dict(fields, "model.toml")


def test_error_of_a_missing_key_names_its_source():
    fields = NANO.to_dict()
    del fields["d_ff"]

    with pytest.raises(ConfigError, match=r"^model\.toml: key 'd_ff' is missing"):
        ModelConfig.from_dict(fields, "model.toml")


def test_removed_window_of_cross_attention_is_rejected_with_its_replacement():
    fields = NANO.to_dict() | {"cross_attention": "window"}

    with pytest.raises(ConfigError, match=r"^model\.toml: .* is 'window', which was removed; .*"):
        ModelConfig.from_dict(fields, "model.toml")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", "is not valid JSON"),
        (b"\xff\xfe", "must be UTF-8 but is UTF-16"),
        (b'{"a":' + b"[" * 100000, "is not valid JSON"),
        (b"[" * 100000, "Expected `object`, got `array`"),
        (b"[1]", "Expected `object`, got `array`"),
    ],
)
def test_error_names_a_file_without_a_json_object(content, message, tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=message) as error:
        ModelConfig.from_json(path)

    assert str(error.value).startswith(str(path))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example(Settings):
    n: int = 0
    rate: float = 0.0
    rates: tuple[float, ...] = ()


@pytest.mark.parametrize(
    "field",
    [
        {"rate": float("nan")},
        {"rate": float("inf")},
        {"rates": [0.5, float("-inf")]},
        {"n": 1 << 64},
        {"n": -(10**5000)},
        {"rate": 10**5000},
        {"n": "a" * 10_000},
    ],
)
def test_a_number_that_is_not_finite_or_has_more_than_64_bits_is_rejected_in_a_short_line(field):
    (name,) = field

    with pytest.raises(ConfigError, match=f"^{name} must be ") as error:
        Example(**field)

    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("d_model", 64.0, "d_model must be an integer but is 64.0"),
        ("d_model", "64", "d_model must be an integer but is '64'"),
        ("vocab_size", True, "vocab_size must be an integer but is True"),
        ("window", None, "window must be an integer but is None"),
        ("rope_theta", "1e4", "rope_theta must be a number but is '1e4'"),
        ("rope_theta", True, "rope_theta must be a number but is True"),
        ("sub_norm", 1, "sub_norm must be true or false but is 1"),
        ("ffn", "gelu", "ffn must be one of 'swiglu', 'geglu', 'relu2', 'sign', 'moe' but"),
        ("weights", 1, "weights must be one of 'ternary', 'ternary_row', 'sign', .* but is 1"),
        ("cross_rope", "neox", "cross_rope must be one of 'interleaved', 'half', 'none'"),
        ("shared_kv", "int2", "shared_kv must be one of 'float', 'int8', 'int4' but is 'int2'"),
        ("layers", "retention", "layers must be a list, each item one of 'retention', 'window'"),
        ("layers", ["mamba"], r"layers must be a list, .* but is \['mamba'\]"),
        ("layers", [["full"]], r"layers must be a list, .* but is \[\['full'\]\]"),
    ],
)
def test_error_of_a_wrong_type_names_field_rule_and_value(name, value, message):
    with pytest.raises(ConfigError, match=f"^config: {message}"):
        ModelConfig.from_dict(NANO.to_dict() | {name: value})


COUNTS = (
    "vocab_size",
    "d_model",
    "d_ff",
    "n_heads",
    "n_kv_heads",
    "n_self_heads",
    "n_self_kv_heads",
    "window",
)


@pytest.mark.parametrize("value", [0, -8])
@pytest.mark.parametrize("name", COUNTS)
def test_count_below_1_is_rejected(name, value):
    with pytest.raises(
        ConfigError, match=rf"^{name} must be (at least 1|between 1 and \d+) but is {value}$"
    ):
        NANO.replace(**{name: value})


@pytest.mark.parametrize("name", ["vocab_size", "d_model", "d_ff", "window"])
def test_size_beyond_the_limit_of_the_engine_is_rejected(name):
    with pytest.raises(ConfigError, match=rf"^{name} must be between 1 and \d+ but is {1 << 30}$"):
        NANO.replace(**{name: 1 << 30})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layers": ()}, r"layers must name 1 to 1024 mixers but is \(\)"),
        ({"layers": ("full",) * 1025}, "layers must name 1 to 1024 mixers"),
        ({"d_model": 68}, "d_model must be a multiple of 8 but is 68"),
        ({"d_ff": 100}, "d_ff must be a multiple of 8 but is 100"),
        ({"n_heads": 3}, "n_heads must divide d_model = 64 into heads .* but is 3"),
        ({"n_heads": 16}, "n_heads must divide d_model = 64 .* multiple of 8 values but is 16"),
        ({"n_self_heads": 5}, "n_self_heads must divide d_model = 64 into heads .* but is 5"),
        ({"n_kv_heads": 3}, "n_kv_heads must divide n_heads = 4 but is 3"),
        ({"n_kv_heads": 8}, "n_kv_heads must divide n_heads = 4 but is 8"),
        ({"n_self_kv_heads": 4}, "n_self_kv_heads must divide n_self_heads = 2 but is 4"),
        ({"rope_theta": 1.0}, "rope_theta must be above 1 and at most 1e\\+12 but is 1.0"),
        ({"rope_theta": float("nan")}, "rope_theta must be above 1 and at most 1e\\+12 but is nan"),
        ({"rope_theta": float("inf")}, "rope_theta must be above 1 and at most 1e\\+12 but is inf"),
        (
            {"d_model": 2048, "n_heads": 1, "n_kv_heads": 1},
            "n_heads must divide d_model = 2048 into heads of at most 1024 values but is 1",
        ),
        ({"norm_eps": 0.0}, "norm_eps must be between 1e-20 and 1 but is 0.0"),
        ({"norm_eps": 1.5}, "norm_eps must be between 1e-20 and 1 but is 1.5"),
        ({"layers": ("cross", "cross")}, "layers must have a self-decoder block before 'cross'"),
        (
            {"layers": ("retention", "cross", "full")},
            r"layers must keep every 'cross' and 'gmu' after .* \('retention', 'cross', 'full'\)",
        ),
        (
            {"layers": ("retention", "gmu", "full", "cross")},
            "layers must keep every 'cross' and 'gmu' after the last self-decoder block but is",
        ),
        ({"layers": ("gmu", "cross")}, "layers must have a self-decoder block before 'gmu'"),
        (
            {"layers": ("cross", "full", "gmu")},
            "layers must have a self-decoder block before 'cross'",
        ),
        (
            {"layers": ("retention", "gmu")},
            r"layers must have a 'cross' if it has a 'gmu', .* but is \('retention', 'gmu'\)",
        ),
    ],
)
def test_error_of_an_invalid_setting_names_field_rule_and_value(changes, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        NANO.replace(**changes)


@pytest.mark.parametrize("layers", [("full",), ("window", "retention"), ("full", "cross")])
def test_plain_decoders_and_any_self_decoder_are_accepted(layers):
    assert NANO.replace(layers=layers).layers == layers


@pytest.mark.parametrize(
    "layers, n_self_layers, has_cross_decoder",
    [
        (("retention", "window", "cross"), 2, True),
        (("full", "full"), 2, False),
        (("window", "cross", "cross"), 1, True),
        (("retention", "full", "cross", "gmu"), 2, True),
        (("retention", "gmu", "cross", "gmu"), 1, True),
    ],
)
def test_self_decoder_ends_before_the_first_cross_or_gmu(layers, n_self_layers, has_cross_decoder):
    config = NANO.replace(layers=layers)

    assert config.n_self_layers == n_self_layers
    assert config.has_cross_decoder == has_cross_decoder


def test_head_size_is_the_width_divided_by_the_number_of_heads():
    config = NANO.replace(n_heads=4, n_self_heads=2)

    assert (config.head_dim, config.self_head_dim) == (16, 32)


def test_error_of_an_unknown_preset_lists_the_known_names():
    with pytest.raises(ConfigError, match="one of nano, tiny, small, 3b but is 'huge'"):
        preset("huge")
