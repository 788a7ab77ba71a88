"""The share of the CPUs that other programs use, from fake files of /proc/stat."""

import pytest

from yocobit.hardware.load import CpuTimes, load_warning, read_cpu_times

STAT = """cpu  999 999 999 999 999 999 999 999 999 999
cpu0 10 1 20 400 30 2 3 4 5 6
cpu1 100 0 0 900 0 0 0 0 0 0
cpu2 7 7 7 7 7 7 7 7 7 7
intr 1 2 3
"""


def test_times_are_those_of_the_cpus_that_are_named(tmp_path):
    (tmp_path / "stat").write_text(STAT)

    times = read_cpu_times([0, 1], tmp_path / "stat")

    # Guests are part of "user", and waiting for disks is idle.
    assert times[:3] == (2, 10 + 1 + 20 + 2 + 3 + 4 + 100, 470 + 1000)


@pytest.mark.parametrize("text", ["", "cpu0 1 2 x 4 5 6 7 8\n", "cpu1 1 2 3 4 5 6 7 8\n", "\xff"])
def test_times_are_none_if_the_system_does_not_report_them(tmp_path, text):
    (tmp_path / "stat").write_text(text, encoding="latin-1")

    assert read_cpu_times([0], tmp_path / "stat") is None
    assert read_cpu_times([0], tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("busy", "own_s", "share"),
    [
        (1000, 10.0, 0.0),  # 2 CPUs, 10 s, 100 ticks a second: half was busy, all of it own
        (1000, 4.0, 0.3),
        (2000, 0.0, 1.0),
        (900, 10.0, 0.0),  # ticks are coarser than own times
    ],
)
def test_share_of_other_programs_excludes_this_process(busy, own_s, share):
    before = CpuTimes(2, 50, 100, own_s=1.0, at_s=7.0)
    after = CpuTimes(2, 50 + busy, 100 + 2000, own_s=1.0 + own_s, at_s=17.0)

    assert before.others_share(after) == pytest.approx(share)


def test_share_is_none_after_a_short_time():
    before = CpuTimes(2, 0, 0, own_s=0.0, at_s=0.0)

    assert before.others_share(CpuTimes(2, 19, 19, own_s=0.0, at_s=0.1)) is None
    assert before.others_share(None) is None


def test_warning_is_given_above_a_tenth_of_the_cpus():
    assert load_warning(None) is None
    assert load_warning(0.1) is None
    assert "used 11% of the CPUs" in load_warning(0.11)
