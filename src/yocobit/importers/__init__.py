"""Importers: convert published checkpoints of other projects to the packed format.

`huggingface` and `gguf` read a file format as a Checkpoint; `import_model` writes it.
"""

from yocobit.importers.checkpoint import Checkpoint, IntegerMatrix
from yocobit.importers.comparison import Comparison, compare
from yocobit.importers.convert import import_model, open_checkpoint, write_checkpoint
from yocobit.importers.support import GGUF_START_BYTES, check_config, check_gguf_start
from yocobit.renamed import aliases

__all__ = [
    "GGUF_START_BYTES",
    "Checkpoint",
    "Comparison",
    "IntegerMatrix",
    "check_config",
    "check_gguf_start",
    "compare",
    "import_model",
    "open_checkpoint",
    "write_checkpoint",
]

VERSION = "6"  # changes when the same source would give other bytes

__getattr__ = aliases(__name__, {"import_bitnet": "yocobit.importers:import_model"})
