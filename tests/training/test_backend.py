"""glibc reuses the memory of freed tensors."""

import platform

import forked
import pytest

COUNT = """
import resource
import torch
from yocobit.training import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(1 << 24).add_(1)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

fresh = faults()
keep_freed_memory()
faults()
# A small allocation may lie in the freed memory once.
print(fresh, min(faults() for _ in range(3)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's mallopt")
def test_freed_memory_is_reused_without_page_faults():
    found = forked.run(code=COUNT)

    assert found.returncode == 0, found.stderr
    fresh, kept = map(int, found.stdout.split())
    assert fresh > 64  # of 64 MB, in huge pages at best
    assert kept < fresh / 8
