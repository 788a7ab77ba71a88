"""Importing this module makes the file in YOCOBIT_NATIVE the native module of yocobit."""

import importlib.util
import os
import sys

if _file := os.environ.get("YOCOBIT_NATIVE"):
    _spec = importlib.util.spec_from_file_location("yocobit._native", _file)
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules["yocobit._native"] = _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)
