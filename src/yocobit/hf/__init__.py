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

from yocobit.hf.configuration import YocobitConfig
from yocobit.hf.modeling import (
    YocobitForCausalLM,
    YocobitForSequenceClassification,
    YocobitModel,
)

AutoConfig.register(YocobitConfig.model_type, YocobitConfig)
AutoModel.register(YocobitConfig, YocobitModel)
AutoModelForCausalLM.register(YocobitConfig, YocobitForCausalLM)
AutoModelForSequenceClassification.register(YocobitConfig, YocobitForSequenceClassification)

__all__ = [
    "YocobitConfig",
    "YocobitForCausalLM",
    "YocobitForSequenceClassification",
    "YocobitModel",
]
