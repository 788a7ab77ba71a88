"""Exporters: packed models as files that other programs run.

A model that the program would compute differently is refused.
"""

from yocobit.exporters.huggingface import export_huggingface

__all__ = ["export_huggingface"]
