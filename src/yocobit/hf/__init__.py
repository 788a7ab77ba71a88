"""The model in `transformers`: importing this package registers it with the Auto classes.

    import yocobit.hf
    model = AutoModelForCausalLM.from_pretrained("runs/mine/checkpoints/step-001000")

With `trust_remote_code=True` the import is not necessary. Needs the extra `hf`.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)
from transformers.utils import is_peft_available

from yocobit.hf.classification import YocobitForSequenceClassification
from yocobit.hf.configuration import YocobitConfig
from yocobit.hf.modeling import YocobitForCausalLM, YocobitModel

AutoConfig.register(YocobitConfig.model_type, YocobitConfig)
AutoModel.register(YocobitConfig, YocobitModel)
AutoModelForCausalLM.register(YocobitConfig, YocobitForCausalLM)
AutoModelForSequenceClassification.register(YocobitConfig, YocobitForSequenceClassification)


def _register_adapters() -> None:
    """Give PEFT the target modules of adapters that name none: those of Llama."""
    from peft import utils

    kind = YocobitConfig.model_type
    utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[kind] = ["q_proj", "v_proj"]
    modules = ["k_proj", "v_proj", "down_proj"]
    utils.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[kind] = modules
    utils.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[kind] = ["down_proj"]


if is_peft_available():
    _register_adapters()

__all__ = [
    "YocobitConfig",
    "YocobitForCausalLM",
    "YocobitForSequenceClassification",
    "YocobitModel",
]
