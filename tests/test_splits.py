from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import OptionError
from featcache.images.splits import permutation, validation_split


def torch_split(count: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    generator = torch.Generator().manual_seed(seed)
    train, val = torch.utils.data.random_split(range(count), [1 - fraction, fraction], generator)  # type: ignore[arg-type,var-annotated]
    return list(train.indices), list(val.indices)


@pytest.mark.parametrize("count", [10, 11, 999, 50_000])
@pytest.mark.parametrize("fraction", [0.2, 0.1, 1 / 3, 0.5])
@pytest.mark.parametrize("seed", [42, 0])
def test_random_is_what_torch_takes_in_the_same_order(count: int, fraction: float, seed: int) -> None:
    expected = torch_split(count, fraction, seed)
    train, val = validation_split(np.zeros(count, np.int64), fraction, seed)
    assert (train.tolist(), val.tolist()) == expected


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 3000), st.integers(-(2**63), 2**64 - 1))
def test_permutation_is_randperm(count: int, seed: int) -> None:
    expected = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert permutation(count, seed).tolist() == expected.tolist()


@settings(max_examples=150, deadline=None)
@given(st.integers(20, 2000), st.floats(0.06, 0.94), st.integers(0, 2**40))
def test_sizes_follow_torch_for_any_fraction(count: int, fraction: float, seed: int) -> None:
    train, val = validation_split(np.zeros(count, np.int64), fraction, seed)
    assert (train.tolist(), val.tolist()) == torch_split(count, fraction, seed)


def test_cifar_sizes() -> None:
    train, val = validation_split(np.zeros(50_000, np.int64))
    assert (len(train), len(val)) == (40_000, 10_000)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=20, max_size=200),
    st.floats(0.1, 0.9),
    st.integers(0, 99),
    st.sampled_from(["random", "stratified", "last"]),
)
def test_two_parts_share_nothing_and_miss_nothing(
    labels: list[int], fraction: float, seed: int, mode: str
) -> None:
    train, val = validation_split(np.array(labels, np.int64), fraction, seed, mode)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(len(labels)))
    assert len(train) and len(val)
    again = validation_split(np.array(labels, np.int64), fraction, seed, mode)
    assert np.array_equal(train, again[0]) and np.array_equal(val, again[1])


def test_stratified_takes_the_share_of_every_class() -> None:
    labels = np.repeat(np.arange(4), [100, 10, 5, 1])
    train, val = validation_split(labels, 0.2, 7, "stratified")
    assert np.bincount(labels[val], minlength=4).tolist() == [20, 2, 1, 0]
    assert np.bincount(labels[train], minlength=4).tolist() == [80, 8, 4, 1]
    other = validation_split(labels, 0.2, 8, "stratified")[1]
    assert sorted(other) != sorted(val)


def test_last_takes_the_end() -> None:
    train, val = validation_split(np.zeros(10, np.int64), 0.2, mode="last")
    assert (train.tolist(), val.tolist()) == ([0, 1, 2, 3, 4, 5, 6, 7], [8, 9])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_fraction_outside_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(OptionError, match="between 0 and 1"):
        validation_split(np.zeros(10, np.int64), fraction)


@pytest.mark.parametrize(("count", "mode"), [(0, "random"), (1, "random"), (2, "last"), (1, "stratified")])
def test_an_empty_part_is_refused(count: int, mode: str) -> None:
    with pytest.raises(OptionError, match="leaves"):
        validation_split(np.zeros(count, np.int64), 0.2, mode=mode)


def test_unknown_mode_and_seed_are_refused() -> None:
    with pytest.raises(OptionError, match=r"Unknown split mode 'first'\. Known: last, random, stratified"):
        validation_split(np.zeros(10, np.int64), mode="first")
    with pytest.raises(OptionError, match="seed"):
        validation_split(np.zeros(10, np.int64), seed=2**64)
