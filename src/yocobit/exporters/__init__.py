"""Exporters: packed models as files that other programs run.

`gguf` writes files for llama.cpp, `huggingface` directories for transformers. A model that the
program would compute differently is refused.
"""

from yocobit.exporters.gguf.export import export_gguf
from yocobit.exporters.huggingface import export_huggingface

__all__ = ["export_gguf", "export_huggingface"]
