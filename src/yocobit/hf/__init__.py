"""The model in `transformers`: importing this package registers it with the Auto classes.

    import yocobit.hf
    model = AutoModelForCausalLM.from_pretrained("runs/mine/checkpoints/step-001000")

Needs the extra `hf`.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from yocobit.hf.configuration import YocobitConfig
from yocobit.hf.modeling import YocobitForCausalLM

AutoConfig.register(YocobitConfig.model_type, YocobitConfig)
AutoModelForCausalLM.register(YocobitConfig, YocobitForCausalLM)

__all__ = ["YocobitConfig", "YocobitForCausalLM"]
