"""Whether runs differ: paired t-test and Fisher's randomisation over queries, corrected for how often one asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from ..errors import ConfigError, DataError
from .measures import Evaluation

__all__ = ["Comparison", "Difference", "compare", "fisher_randomisation", "holm", "paired_t"]

_BLOCK = 1 << 22  # signs drawn at once
_EXACT = 1 << 17  # sign assignments that are enumerated at most


@dataclass(frozen=True)
class Difference:
    """One run against the baseline by one measure.

    Attributes:
        run: the run's name.
        measure: the measure's name.
        baseline_mean, mean: over the judged queries.
        difference: mean - baseline_mean; negative is a loss.
        low, high: the t interval of the mean difference.
        t: the paired t statistic (infinite when every query differs by the same amount).
        p_t, p_fisher: two-sided, uncorrected.
        p_t_holm, p_fisher_holm: after Holm's correction over the whole comparison.
        wins, ties, losses: queries better, equal, worse than the baseline.
    """

    run: str
    measure: str
    baseline_mean: float
    mean: float
    difference: float
    low: float
    high: float
    t: float
    p_t: float
    p_fisher: float
    p_t_holm: float
    p_fisher_holm: float
    wins: int
    ties: int
    losses: int
    values: np.ndarray = field(repr=False, compare=False, default_factory=lambda: np.zeros(0))
    """(queries,) float64: the run's value less the baseline's, query by query."""

    def verdict(self, alpha: float = 0.05) -> str:
        """ "better", "worse" or "no difference shown", by Holm-corrected Fisher randomisation."""
        if self.p_fisher_holm >= alpha:
            return "no difference shown"
        return "better" if self.difference > 0 else "worse"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the per-query differences; infinite ones (t, bounds) as None."""
        plain = asdict(self)
        del plain["values"]
        return {
            name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in plain.items()
        }


@dataclass(frozen=True)
class Comparison:
    """Runs against a baseline, over the same judged queries.

    Attributes:
        baseline: its name.
        qids: the judged queries.
        differences: one for each run and measure, run by run.
        permutations: how many sign assignments Fisher's test drew at most.
        seed: of that draw.
        confidence: of the intervals.
        alpha: level below which a corrected p is called a difference.
    """

    baseline: str
    qids: tuple[str, ...]
    differences: tuple[Difference, ...]
    permutations: int
    seed: int
    confidence: float
    alpha: float

    @property
    def note(self) -> str:
        """The tests in one sentence, for reports."""
        return (
            f"Paired two-sided t-test and Fisher randomisation ({self.permutations:,} sign assignments, seed "
            f"{self.seed}; exact where there are fewer) over {len(self.qids)} queries; Holm correction over the "
            f"{len(self.differences)} comparisons; {self.confidence:.0%} t intervals of the mean difference."
        )

    def find(self, run: str, measure: str) -> Difference:
        """The difference of a run by a measure; `KeyError` when it was not compared."""
        for difference in self.differences:
            if (difference.run, difference.measure) == (run, measure):
                return difference
        raise KeyError((run, measure))


def compare(
    baseline: Evaluation,
    others: Sequence[Evaluation],
    *,
    measures: Sequence[str] | None = None,
    permutations: int = 100_000,
    seed: int = 0,
    confidence: float = 0.95,
    alpha: float = 0.05,
) -> Comparison:
    """Test any number of runs against a baseline.

    The family that Holm's correction covers is every run and measure of this call.

    Args:
        baseline: what the others are held against.
        others: evaluations over the same judged queries, under names of their own.
        measures: which of the baseline's measures; None takes all.
        permutations: sign assignments drawn by Fisher's test.
        seed: of that draw.
        confidence: of the t intervals.
        alpha: level for verdicts.

    Raises:
        ConfigError: nothing to compare, a name twice, a measure that an evaluation lacks.
        DataError: the judged queries differ.
    """
    if not others:
        raise ConfigError("a comparison needs at least one run besides the baseline")
    names = [baseline.name, *(other.name for other in others)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"runs need names of their own, but these occur twice: {', '.join(twice)}")
    chosen = list(measures or baseline.measures)
    columns = []
    for other in others:
        if other.qids != baseline.qids:
            raise DataError(f"{other.name!r} was evaluated over other queries ({other.judged}) than the baseline "
                            f"{baseline.name!r} ({baseline.judged}); use the same judgments")  # fmt: skip
        columns += [(other, measure, other[measure] - baseline[measure]) for measure in chosen]
    differences = np.stack([values for _, _, values in columns], axis=1)
    t, p_t, low, high = paired_t(differences, confidence=confidence)
    p_fisher = fisher_randomisation(differences, permutations=permutations, seed=seed)
    p_t_holm, p_fisher_holm = holm(p_t), holm(p_fisher)
    rows = tuple(
        Difference(
            other.name, measure, baseline.mean(measure), other.mean(measure), float(values.mean()),
            float(low[at]), float(high[at]), float(t[at]), float(p_t[at]), float(p_fisher[at]),
            float(p_t_holm[at]), float(p_fisher_holm[at]),
            int((values > 0).sum()), int((values == 0).sum()), int((values < 0).sum()), values,
        )
        for at, (other, measure, values) in enumerate(columns)
    )  # fmt: skip
    return Comparison(baseline.name, tuple(baseline.qids), rows, permutations, seed, confidence, alpha)


def paired_t(
    differences: np.ndarray, *, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The paired two-sided t-test of each column: t = mean / (s / sqrt(n)), n - 1 degrees of freedom.

    Args:
        differences: (queries, columns).
        confidence: of the interval of the mean.

    Returns:
        t, p, and the interval's low and high, each (columns,). A column of zeros has t 0 and p 1; a constant other
        column has infinite t and p 0; one query alone has t 0, p 1 and an unbounded interval.
    """
    n, columns = differences.shape
    mean = differences.mean(axis=0)
    if n < 2:
        return np.zeros(columns), np.ones(columns), np.full(columns, -np.inf), np.full(columns, np.inf)
    error = differences.std(axis=0, ddof=1) / np.sqrt(n)
    constant = np.ptp(differences, axis=0) == 0
    error = np.where(constant, 0.0, error)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(mean == 0, 0.0, mean / error)
    half = stdtrit(n - 1, 0.5 + confidence / 2) * error
    return t, 2 * stdtr(n - 1, -np.abs(t)), mean - half, mean + half


def fisher_randomisation(differences: np.ndarray, *, permutations: int = 100_000, seed: int = 0) -> np.ndarray:
    """Fisher's two-sided randomisation test of each column's mean difference (Smucker, Allan and Carterette 2007).

    Under the null hypothesis each query's difference could as well have the other sign. All sign assignments are
    taken when there are at most `permutations` (and 2^17) of them; else that many are drawn, and
    p = (extreme + 1) / (drawn + 1).

    Args:
        differences: (queries, columns).
        permutations: how many sign assignments are drawn.
        seed: of the draw; the columns share it.

    Returns:
        p, (columns,).
    """
    p = np.ones(differences.shape[1])
    drawn: list[int] = []
    for column in range(differences.shape[1]):
        values = differences[:, column]
        values = values[values != 0]
        if len(values) and 2 ** min(len(values), 62) <= min(permutations, _EXACT):
            signs = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1
            p[column] = _extreme(signs.astype(np.float64), values[:, None])[0] / len(signs)
        elif len(values):
            drawn.append(column)
    if drawn:
        rng = np.random.default_rng(seed)
        some = differences[:, drawn]
        extreme = np.zeros(len(drawn), dtype=np.int64)
        done = 0
        while done < permutations:
            count = min(max(_BLOCK // len(some), 1), permutations - done)
            bits = np.unpackbits(np.frombuffer(rng.bytes(count * ((len(some) + 7) // 8)), dtype=np.uint8))
            extreme += _extreme(bits.reshape(count, -1)[:, : len(some)].astype(np.float64), some)
            done += count
        p[drawn] = (extreme + 1) / (permutations + 1)
    return p


def _extreme(signs: np.ndarray, differences: np.ndarray) -> np.ndarray:
    """How many sign assignments (rows of 0 and 1) give a sum at least as far from 0 as the one observed. (columns,)"""
    observed = differences.sum(axis=0)
    sums = 2 * (signs @ differences) - observed
    slack = 1e-12 * np.abs(differences).sum(axis=0)  # equal sums, added up in another order, still count as equal
    return (np.abs(sums) >= np.abs(observed) - slack).sum(axis=0)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction: the i-th smallest of m times m - i + 1, never below its predecessor, at most 1."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected
