"""The markers in the tests of transformers (transformers_suite.py)."""

import pytest

_MARKERS = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test")
_MARKERS += ("generate", "order", "torch_compile_test", "torch_export_test", "flaky", "timeout")
_MARKERS += ("onnx_export_test", "executorch_export_test")


def pytest_configure(config: pytest.Config) -> None:
    for name in _MARKERS:
        config.addinivalue_line("markers", f"{name}: set by transformers")
