"""What each benchmark reports: its measures, its order, and how several of its collections make one figure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..errors import ConfigError, nearest
from .measures import Evaluation
from .run import Order

__all__ = ["AVERAGES", "PRESETS", "Aggregate", "Preset", "aggregate", "get_preset"]


@dataclass(frozen=True)
class Preset:
    """How a benchmark evaluates.

    Attributes:
        measures: by ir-measures' names; the first is the one that the benchmark is ranked by.
        order: how runs are read: MS MARCO's own script goes by the rank column, everything else by score.
        relevance_level: the lowest grade that binary measures count as relevant.
        excludes: whether the collection's excluded documents must be removed (and so must be known).
        note: the convention in words, for reports.
    """

    name: str
    measures: tuple[str, ...]
    order: Order = "score"
    relevance_level: int = 1
    excludes: bool = False
    note: str = ""


_DL = ("nDCG@10", "AP(rel=2)@1000", "RR(rel=2)@10", "R(rel=2)@100", "R(rel=2)@1000")
_DL_NOTE = "nDCG on grades 0 to 3; binary measures count grades 2 and 3; mean over the judged queries"

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("beir", ("nDCG@10", "R@100"), note="documents with the query's id are dropped where collections say"),
        Preset("trec-dl-2019", _DL, relevance_level=2, note=_DL_NOTE),
        Preset("trec-dl-2020", _DL, relevance_level=2, note=_DL_NOTE),
        Preset("trec-dl-2021", _DL, relevance_level=2, note=_DL_NOTE),
        Preset("msmarco-dev", ("RR@10", "R@1000"), order="rank", note="by the file's rank column, as the track does"),
        Preset("rar-b", ("nDCG@10", "R@10")),
        Preset("bright", ("nDCG@10",), excludes=True, note="documents excluded for a query are removed first"),
    )
}  # fmt: skip

_CQADUPSTACK = tuple(
    f"cqadupstack/{forum}"
    for forum in ("android", "english", "gaming", "gis", "mathematica", "physics", "programmers", "stats", "tex",
                  "unix", "webmasters", "wordpress")
)  # fmt: skip
_BEIR_13 = (
    "arguana", "climate-fever", "dbpedia-entity", "fever", "fiqa", "hotpotqa", "nfcorpus", "nq", "quora", "scidocs",
    "scifact", "trec-covid", "webis-touche2020",
)  # fmt: skip

AVERAGES: dict[str, tuple[str, ...]] = {
    "beir-13": _BEIR_13,
    "beir-14": (*_BEIR_13, "cqadupstack"),
    "beir-15": (*_BEIR_13, "cqadupstack", "msmarco"),
    "beir-18": (*_BEIR_13, "cqadupstack", "bioasq", "robust04", "signal1m", "trec-news"),
    "cqadupstack": _CQADUPSTACK,
}
"""Which collections an average is over. `beir-13` is that of the SPLADE papers; averages over different sets do not
compare."""


def get_preset(name: str) -> Preset:
    """Return a preset by name; `ConfigError` naming the nearest when there is none."""
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}{nearest(name, PRESETS)}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True)
class Aggregate:
    """Means over collections, every collection counting once.

    Attributes:
        name: of the average, "all" when it is over whatever was given.
        measures: which every collection has.
        rows: by collection, the mean by measure; CQADupStack's forums are one row.
        means: by measure, the mean of `rows`.
    """

    name: str
    measures: tuple[str, ...]
    rows: Mapping[str, Mapping[str, float]]
    means: Mapping[str, float]


def aggregate(evaluations: Mapping[str, Evaluation], *, over: str | None = None) -> Aggregate:
    """Average one retriever's evaluations over collections.

    The forums of CQADupStack ("cqadupstack/android", …) are averaged first, and only when all twelve are there.

    Args:
        evaluations: by the collection's name in lower case.
        over: a name of `AVERAGES`: exactly these collections must be there (others are left out of the mean). None
            takes all that are given.

    Raises:
        ConfigError: nothing given, no measure in common, an unknown average, or collections missing from it.
    """
    if not evaluations:
        raise ConfigError("no evaluations to average")
    first, *others = evaluations.values()
    measures = tuple(name for name in first.measures if all(name in other.measures for other in others))
    if not measures:
        raise ConfigError("the evaluations have no measure in common")
    rows = {name: {measure: found.mean(measure) for measure in measures} for name, found in evaluations.items()}
    if over != "cqadupstack":
        rows = _with_forums_as_one(rows, measures)
    if over is not None:
        rows = _only(rows, over)
    means = {measure: sum(row[measure] for row in rows.values()) / len(rows) for measure in measures}
    return Aggregate(over or "all", measures, rows, means)


def _with_forums_as_one(rows: dict[str, dict[str, float]], measures: Collection[str]) -> dict[str, dict[str, float]]:
    forums = [name for name in rows if name.startswith("cqadupstack/")]
    if not forums:
        return rows
    missing = [name for name in _CQADUPSTACK if name not in rows]
    if missing or len(forums) != len(_CQADUPSTACK):
        raise ConfigError(f"CQADupStack is the mean of its {len(_CQADUPSTACK)} forums, but {len(forums)} are there",
                          [f"missing: {name}" for name in missing])  # fmt: skip
    one = {measure: sum(rows[name][measure] for name in forums) / len(forums) for measure in measures}
    return {name: row for name, row in rows.items() if name not in forums} | {"cqadupstack": one}


def _only(rows: dict[str, dict[str, float]], over: str) -> dict[str, dict[str, float]]:
    if over not in AVERAGES:
        raise ConfigError(f"no average {over!r}{nearest(over, AVERAGES)}; there are {', '.join(AVERAGES)}")
    missing = [name for name in AVERAGES[over] if name not in rows]
    if missing:
        raise ConfigError(f"the average {over} lacks collections", [f"missing: {name}" for name in missing])
    return {name: rows[name] for name in AVERAGES[over]}
