"""Measures by ir-measures' names, and which provider computes each over which part of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ir_measures
from ir_measures import Measure

from ..errors import ConfigError, nearest

__all__ = ["Group", "canonical", "group_measures", "parse_measures", "totals"]

_PROVIDERS = ("pytrec_eval", "judged", "gdeval", "compat", "cwl_eval")
_CUT = {"P", "R", "AP", "nDCG", "Success", "Judged"}  # a value at cutoff k depends on the first k documents only


def parse_measures(measures: str | Measure | Sequence[str | Measure]) -> list[Measure]:
    """Return ir-measures' objects for "nDCG@10 RR(rel=2)@10", a list of such, or the objects themselves.

    Raises:
        ConfigError: holding every unknown name (with the nearest known one) and every bad argument.
    """
    parts: list[str | Measure] = []
    for item in [measures] if isinstance(measures, str | Measure) else measures:
        parts.extend(_split(item) if isinstance(item, str) else [item])
    found: dict[str, Measure] = {}
    problems: list[str] = []
    for part in parts:
        try:
            measure = ir_measures.parse_measure(part) if isinstance(part, str) else part
            if any(info.required and name not in measure.params for name, info in measure.SUPPORTED_PARAMS.items()):
                raise ValueError(f"it needs a {measure.AT_PARAM}: {part}@…")
            measure.validate_params()
            cutoff = measure.params.get("cutoff", 1)
            if cutoff < 1:
                raise ValueError(f"cutoff {cutoff} is below 1")
            _provider(_as_computed(measure, {1: 1})[0])
        except NameError:
            name = str(part).split("(")[0].split("@")[0]
            problems.append(f"{part}: no such measure{nearest(name, ir_measures.measures.registry)}")
        except (ValueError, TypeError, KeyError, AssertionError) as error:
            problems.append(f"{part}: {error}")
        else:
            found.setdefault(str(measure), measure)
    if problems or not found:
        raise ConfigError("measures, by ir-measures' names such as nDCG@10, RR@10, R@1000, AP(rel=2), Judged@10:",
                          problems or ["none given"])  # fmt: skip
    return list(found.values())


def canonical(measure: str | Measure) -> str:
    """The one name under which an evaluation holds a measure ("MRR@10" -> "RR@10")."""
    return str(parse_measures(measure)[0])


def totals(measure: str) -> bool:
    """Whether the measure is summed, not averaged, over queries (NumRet, NumRel, NumQ)."""
    return isinstance(parse_measures(measure)[0].aggregator(), ir_measures.SumAgg)


def _split(text: str) -> list[str]:
    """Split at blanks and commas that stand outside of brackets."""
    parts, depth, current = [], 0, ""
    for letter in text:
        depth += (letter in "({[") - (letter in ")}]")
        if depth == 0 and (letter.isspace() or letter == ","):
            parts.append(current)
            current = ""
        else:
            current += letter
    return [part for part in [*parts, current] if part]


@dataclass(frozen=True)
class Group:
    """Measures that one provider computes from the same lists.

    Attributes:
        provider: ir-measures' name of it.
        depth: how many documents of each list it is shown; None for all.
        judged_only: whether unjudged documents are dropped first.
        measures: (measure as asked for, measure as handed to the provider).
    """

    provider: str
    depth: int | None
    judged_only: bool
    measures: tuple[tuple[Measure, Measure], ...]

    @property
    def gains(self) -> Mapping[int, int]:
        """The gains that replace grades; empty for linear ones."""
        return self.measures[0][1].params.get("gains") or {}

    def evaluator(self, judgments: dict[str, dict[str, int]]) -> Any:
        return ir_measures.providers.registry[self.provider].evaluator(
            [handed for _, handed in self.measures], judgments
        )


def group_measures(measures: Sequence[Measure], grades: Mapping[int, int], *, judged_only: bool = False) -> list[Group]:
    """Put the measures into as few groups as give every one of them pytrec_eval's value.

    - RR@k is RR of the list cut at k (its own provider breaks ties otherwise and caps nothing else).
    - judged_only measures see lists without unjudged documents.
    - nDCG with exponential gains is nDCG with gains 2^grade - 1, so that it needs no other program and no rounding.
    - Measures with gains stand alone: the provider would apply them to its neighbours.

    Args:
        measures: what `parse_measures` returned.
        grades: the judgments' positive grades (keys).
        judged_only: drop unjudged documents for all of them.
    """
    pending: dict[tuple[str, str, bool, int | None], list[tuple[Measure, Measure]]] = {}
    for measure in measures:
        handed, own_depth = _as_computed(measure, grades)
        only = judged_only or bool(measure.params.get("judged_only", False))
        key = (_provider(handed), str(handed.params.get("gains", "")), only, own_depth)
        pending.setdefault(key, []).append((measure, handed))
    groups: dict[tuple[str, str, bool, int | None], list[tuple[Measure, Measure]]] = {}
    for (provider, gains, only, own_depth), pairs in pending.items():
        cuts = [handed.params.get("cutoff") if handed.NAME in _CUT else None for _, handed in pairs]
        depth = own_depth or (None if None in cuts else max(cut for cut in cuts if cut))
        groups.setdefault((provider, gains, only, depth), []).extend(pairs)
    return [Group(provider, depth, only, tuple(pairs)) for (provider, _, only, depth), pairs in groups.items()]


def _as_computed(measure: Measure, grades: Mapping[int, int]) -> tuple[Measure, int | None]:
    """The measure as its provider gets it, and the depth to which lists must be cut for it."""
    params = {name: value for name, value in measure.params.items() if name != "judged_only"}
    if measure.NAME == "RR" and "cutoff" in params:
        depth = params.pop("cutoff")
        return type(measure)(**params), depth
    if measure.NAME == "nDCG" and params.get("dcg") == "exp-log2":
        if "gains" in params:
            raise ValueError("dcg='exp-log2' and gains exclude each other")
        del params["dcg"]
        params["gains"] = {grade: 2**grade - 1 for grade in sorted(grades) if grade > 0}
    return type(measure)(**params), None


def _provider(measure: Measure) -> str:
    needs: list[str] = []
    for name in _PROVIDERS:
        provider = ir_measures.providers.registry[name]
        if provider.supports(measure):
            if provider.is_available():
                return name
            needs.append(f"{name} is not installed ({provider.install_instructions()})")
    reason = "; ".join(needs) or "no provider computes it from graded judgments with these arguments"
    raise ValueError(f"cannot be computed: {reason}")
