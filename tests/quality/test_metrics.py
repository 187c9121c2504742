"""Metrics against definitions, and the bootstrap against distributions whose answer is known."""

import math

import numpy as np
import pytest

import metrics


def test_attention_is_softmax():
    logits, v = np.array([[0.0, math.log(3)]]), np.array([[1.0, 0.0], [0.0, 2.0]])
    out, lse = metrics.attend(logits, v)
    assert np.allclose(out, [[0.25, 1.5]]) and np.allclose(lse, math.log(4))


def test_attention_survives_extreme_logits_and_no_rows():
    out, lse = metrics.attend(np.array([1e4, -1e4]), np.array([[1.0], [5.0]]))
    assert out == 1 and lse == 1e4
    out, lse = metrics.attend(np.zeros((3, 0)), np.zeros((0, 2)))
    assert not out.any() and out.shape == (3, 2) and np.all(lse == -np.inf)


def test_effective_rows():
    assert metrics.effective_rows(np.zeros((2, 50))) == pytest.approx([50, 50])
    assert metrics.effective_rows(np.array([0.0, -1e3, -1e3])) == pytest.approx(1)


def test_relative_error():
    assert metrics.relative_error(np.array([[3.0, 4.0]]), np.array([[0.0, 4.0]])) == pytest.approx(0.75)


def test_divergence():
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    expected = float((p * np.log(p / q)).sum())
    assert metrics.divergence(np.log(p) + 7, np.log(q) - 2) == pytest.approx(expected)  # logits are known up to a constant
    assert metrics.divergence(np.log(p)[None], np.log(p)[None]) == pytest.approx([0])


def test_a_curve_is_straight_in_log_log():
    curve = [(1.0, 1.0), (100.0, 0.01)]
    assert metrics.at(curve, 10) == pytest.approx(0.1)
    assert metrics.at(curve, 1000) == pytest.approx(0.01)
    assert metrics.at(curve, 0.5) is None and metrics.at([], 1) is None


def test_every_row_has_a_coordinate_of_its_own():
    random = np.random.default_rng(1)
    groups = [random.choice(200, 30, replace=False).tolist() for _ in range(60)]
    chosen = metrics.coordinates(groups, 256)
    assert set(chosen) == {row for group in groups for row in group}
    assert len(set(chosen.values())) == len(chosen) and max(chosen.values()) < 256


def test_rows_without_a_coordinate_are_those_of_few_groups():
    assert metrics.coordinates([[1, 2, 3, 4], [2, 4], [4]], 3) == {4: 0, 2: 1, 1: 2}


def test_bootstrap_of_equal_samples_is_one():
    x = np.random.default_rng(2).lognormal(size=(8, 10))
    assert metrics.ratio_bound(x, x) == (1.0, 1.0)
    assert metrics.ratio_bound(x / 4, x) == (pytest.approx(0.25), pytest.approx(0.25))


def test_bootstrap_covers():
    """True ratio 1/2, 32 blocks of 10 seeds, 120 repetitions: a one-sided 95 % bound below the truth in more than 22 of them (18 %, where 5 %
    are promised and the percentile bootstrap of 32 skewed units gives about 7) has probability < 1e-5; this seed gives far fewer."""
    random, below = np.random.default_rng(3), 0
    for _ in range(120):
        block = random.lognormal(0, 0.5, size=(32, 1))
        ours, theirs = (scale * block * random.lognormal(0, 0.3, size=(32, 10)) for scale in (0.5, 1.0))
        below += metrics.ratio_bound(ours, theirs, resamples=300)[1] < 0.5
    assert below <= 22


def test_bootstrap_wants_pairs():
    with pytest.raises(ValueError):
        metrics.ratio_bound(np.ones((3, 1)), np.ones((4, 1)))
