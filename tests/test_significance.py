"""Significance: against scipy and by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from rtk.errors import ConfigError, DataError
from rtk.eval.measures import Evaluation
from rtk.eval.significance import compare, fisher_randomisation, holm, paired_t
from rtk.ids import Ids


def evaluation(name: str, values: np.ndarray | list[float], *, prefix: str = "q") -> Evaluation:
    values = np.asarray(values, dtype=np.float64)
    return Evaluation(name, Ids(f"{prefix}{row}" for row in range(len(values))), {"nDCG@10": values})


@pytest.fixture
def differences() -> np.ndarray:
    return np.random.default_rng(3).normal(0.05, 0.3, (43, 4)).round(2)


def test_paired_t_equals_scipy(differences: np.ndarray) -> None:
    expected = stats.ttest_1samp(differences, 0)
    t, p, low, high = paired_t(differences, confidence=0.9)
    interval = expected.confidence_interval(0.9)
    for ours, theirs in ((t, expected.statistic), (p, expected.pvalue), (low, interval.low), (high, interval.high)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_degenerate_columns_have_a_defined_answer() -> None:
    columns = np.asarray([[0.0, 0.1], [0.0, 0.1], [0.0, 0.1]])
    t, p, low, high = paired_t(columns)
    assert t.tolist() == [0.0, np.inf]
    assert p.tolist() == [1.0, 0.0]
    np.testing.assert_allclose([low, high], [[0, 0.1], [0, 0.1]])
    assert [part.tolist() for part in paired_t(columns[:1])] == [[0, 0], [1, 1], [-np.inf] * 2, [np.inf] * 2]
    assert fisher_randomisation(columns).tolist() == [1.0, 0.25]


def test_few_queries_are_enumerated_exactly() -> None:
    values = np.asarray([0.1, -0.2, 0.3, 0.3, 0.0, 0.4, 0.1])
    sums = [abs(np.dot(signs, values)) for signs in product([-1, 1], repeat=len(values))]
    expected = np.mean([total >= abs(values.sum()) - 1e-12 for total in sums])
    assert fisher_randomisation(values[:, None])[0] == pytest.approx(expected)


def test_drawn_signs_come_near_scipy_s(differences: np.ndarray) -> None:
    p = fisher_randomisation(differences, permutations=100_000, seed=1)
    rng = np.random.default_rng(0)
    for column, ours in enumerate(p):
        theirs = stats.permutation_test(
            (differences[:, column],), np.mean, permutation_type="samples", n_resamples=20_000, rng=rng
        ).pvalue
        assert ours == pytest.approx(theirs, abs=0.015)


def test_the_seed_decides_and_columns_do_not_disturb_each_other(differences: np.ndarray) -> None:
    p = fisher_randomisation(differences, permutations=2000, seed=5)
    assert p.tolist() == fisher_randomisation(differences, permutations=2000, seed=5).tolist()
    assert p.tolist() != fisher_randomisation(differences, permutations=2000, seed=6).tolist()
    assert p[:1].tolist() == fisher_randomisation(differences[:, :1], permutations=2000, seed=5).tolist()
    np.testing.assert_allclose(p, fisher_randomisation(-differences, permutations=2000, seed=5))


def test_p_is_never_zero() -> None:
    assert fisher_randomisation(np.ones((60, 1)), permutations=500)[0] == pytest.approx(1 / 501)


def test_the_null_hypothesis_is_rejected_as_often_as_it_should() -> None:
    columns = np.random.default_rng(9).normal(0, 1, (25, 400))
    share = (fisher_randomisation(columns, permutations=2000) < 0.05).mean()
    assert 0.02 < share < 0.09


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm(np.asarray([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    assert holm(np.asarray([0.6, 0.9])).tolist() == [1.0, 1.0]


def test_a_loss_is_a_loss() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.4, 0.6, 50)
    worse, better, same = base - rng.uniform(0, 0.2, 50), base + rng.uniform(0, 0.2, 50), base + 0
    same[0] += 0.01
    same[1] -= 0.01
    found = compare(evaluation("base", base), [evaluation("w", worse), evaluation("b", better), evaluation("s", same)],
                    permutations=5000)  # fmt: skip
    assert [row.verdict() for row in found.differences] == ["worse", "better", "no difference shown"]
    row = found.find("w", "nDCG@10")
    assert row.difference == pytest.approx((worse - base).mean())
    assert row.difference < 0
    assert row.high < 0
    assert (row.wins, row.losses) == (0, 50)
    assert [found.find("s", "nDCG@10").wins, found.find("s", "nDCG@10").ties, found.find("s", "nDCG@10").losses] == [
        1,
        48,
        1,
    ]
    assert all(row.p_fisher_holm >= row.p_fisher and row.p_t_holm >= row.p_t for row in found.differences)
    assert "3 comparisons" in found.note


def test_what_cannot_be_compared_is_refused() -> None:
    base = evaluation("base", [0.1, 0.2])
    with pytest.raises(ConfigError, match="at least one run"):
        compare(base, [])
    with pytest.raises(ConfigError, match="base"):
        compare(base, [evaluation("base", [0.1, 0.2])])
    with pytest.raises(DataError, match="other queries"):
        compare(base, [evaluation("x", [0.1, 0.2], prefix="p")])
    with pytest.raises(ConfigError, match="was not evaluated by 'RR@10'"):
        compare(base, [evaluation("x", [0.1, 0.3])], measures=["RR@10"])
