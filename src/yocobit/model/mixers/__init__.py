"""Token mixers: the part of a block that moves information between positions.

Every mixer maps x (B, T, C) at positions `start`, and the state after the positions before them, to
y (B, T, C), the next state and the memory; `None` is the state before position 0. One call over all
positions equals any split into calls. The memory (B, T, C) is the mixer's output before gate and
output projection: in the last self-decoder layer if gated memory units read it, None otherwise.

One file per mixer, as in native/engine/mixers/; yocobit.mixers has everything but the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from yocobit.config import Mixer
from yocobit.model.mixers.cross import CrossAttention
from yocobit.model.mixers.full import FullAttention
from yocobit.model.mixers.gate import Gate
from yocobit.model.mixers.gmu import GatedMemoryUnit
from yocobit.model.mixers.retention import GatedRetention
from yocobit.model.mixers.window import WindowAttention

# Called with the config and, in the self-decoder, whether the layer returns the memory.
MIXER_MODULES: dict[Mixer, Callable[..., nn.Module]] = {
    "retention": GatedRetention,
    "window": WindowAttention,
    "full": FullAttention,
    "cross": CrossAttention,
    "gmu": GatedMemoryUnit,
    "gate": Gate,
}
