"""Windows: their order in a source, and the interleaving of sources, as pure functions."""

import numpy as np
import pytest

from yocobit.data.windows import BLOCK, shares, shuffled, source_of, window_start

KEYS, OTHER_KEYS = (3, 1, 4, 1, 5, 9), (2, 7, 1, 8, 2, 8)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 63, 64, 65, 1000])
def test_shuffle_is_a_permutation(n):
    assert sorted(shuffled(i, n, KEYS) for i in range(n)) == list(range(n))


def test_shuffle_is_uncorrelated_with_the_order_and_depends_on_its_keys():
    n = 4096
    first = np.array([shuffled(i, n, KEYS) for i in range(n)])
    other = np.array([shuffled(i, n, OTHER_KEYS) for i in range(n)])

    # For independent orders, a correlation has standard deviation n^-1/2 = 0.016, and the number of
    # equal positions is Poisson of mean 1.
    for a, b in ((first, np.arange(n)), (first[1:], first[:-1]), (first, other)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 * n**-0.5
        assert (a == b).sum() < 10


@pytest.mark.parametrize(("n_tokens", "context"), [(100, 8), (96, 8), (8, 8), (9, 8)])
def test_windows_of_a_pass_do_not_overlap_and_omit_less_than_one(n_tokens, context):
    n_windows = n_tokens // context
    for number_of_pass in range(3):
        numbers = range(number_of_pass * n_windows, (number_of_pass + 1) * n_windows)
        starts = [window_start(0, 0, number, n_tokens, context) for number in numbers]
        positions = {(start + i) % n_tokens for start in starts for i in range(context)}

        assert len(positions) == n_windows * context > n_tokens - context


def test_passes_seeds_and_sources_have_different_orders():
    def order(seed, source, number_of_pass):
        numbers = range(number_of_pass * 50, (number_of_pass + 1) * 50)
        return tuple(window_start(seed, source, n, 500, 10) for n in numbers)

    assert len({order(0, 0, 0), order(0, 0, 1), order(1, 0, 0), order(0, 1, 0)}) == 4


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((1.0,), (1024,)),
        ((3.0, 1.0), (768, 256)),
        ((0.7, 0.2, 0.1), (717, 205, 102)),
        ((1.0, 1.0, 1.0), (342, 341, 341)),
        ((1e9, 1.0, 1e-9), (1022, 1, 1)),
    ],
)
def test_shares_of_a_block_are_the_nearest_to_the_weights(weights, expected):
    assert shares(weights) == expected


def test_each_source_has_its_share_of_every_block_in_an_order_by_seed():
    counts = shares((0.7, 0.2, 0.1))
    found = np.array([[source_of(seed, i, counts)[0] for i in range(2 * BLOCK)] for seed in (0, 1)])

    for block in (found[0, :BLOCK], found[0, BLOCK:], found[1, :BLOCK]):
        assert tuple(np.bincount(block)) == counts
    assert not np.array_equal(found[0, :BLOCK], found[0, BLOCK:])
    assert not np.array_equal(found[0], found[1])


def test_windows_of_a_source_are_numbered_without_a_gap_through_all_blocks():
    counts = shares((0.7, 0.2, 0.1))
    numbers: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for i in range(3 * BLOCK):
        source, number = source_of(5, i, counts)
        numbers[source].append(number)

    for found in numbers.values():
        assert found == list(range(len(found)))
