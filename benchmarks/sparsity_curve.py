"""Quality against sparsity: nDCG@10 over the FLOPS metric of models that were trained with several λ, as a drawing.

    rtk recipe run splade --variant sweep collection=COLLECTION --seeds 1,2,3 --out SWEEP
    python benchmarks/sparsity_curve.py COLLECTION --sweep SWEEP --line BM25=SWEEP/bm25.trec --svg sparsity.svg
    python benchmarks/sparsity_curve.py COLLECTION --point 0.001=INDEX:RUN --point 0.003=INDEX:RUN --svg FILE

A point is a sparse index, whose encoder encodes the split's queries again for the FLOPS metric, and the run that was
made with it. `--sweep` takes all of a recipe's output, SWEEP/SEED/λ/index and SWEEP/SEED/λ/SPLIT.trec; points of one λ
are averaged over the seeds. `--line` draws the quality of a run that has no FLOPS metric over the whole width. The
numbers are printed as a table too.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rtk.eval import evaluate, open_collection
from rtk.eval.collection import Collection
from rtk.eval.files import read_run
from rtk.eval.svg import line_plot
from rtk.indexes import activity, flops_metric
from rtk.indexes.sparsity import read_activity
from rtk.retrieval.search import Retriever

STYLE = (
    "<style>text{font-family:sans-serif;font-size:12px;fill:#44403c}.grid{stroke:#e7e5e4}.zero{stroke:#78716c}</style>"
)


@dataclass(frozen=True)
class Point:
    """One model, or the mean of several that differ in their seed."""

    flops: float
    quality: float
    query_terms: float
    document_terms: float


def measure(collection: Collection, split: str, name: str, index: Path, run: Path) -> Point:
    """What one index and its run are worth, and what they cost."""
    retriever = Retriever.open(index)
    encoder: Any = retriever.encoder
    asked = activity(encoder.encode_query(list(collection.queries(split).texts)))
    held = read_activity(index, len(retriever.ids))
    return Point(flops_metric(asked, held), quality(collection, split, name, run), asked.mean, held.mean)


def quality(collection: Collection, split: str, name: str, run: Path) -> float:
    """nDCG@10 of a run."""
    judgments = collection.judgments(split)
    return evaluate(read_run(run), judgments, [name], conventions=collection.conventions).mean(name)


def found_in(sweep: Path, split: str) -> dict[str, list[tuple[Path, Path]]]:
    """(index, run) of every seed, by λ."""
    found: dict[str, list[tuple[Path, Path]]] = defaultdict(list)
    for run in sorted(sweep.glob(f"*/*/{split}.trec")):
        if (run.parent / "index" / "manifest.json").is_file():
            found[run.parent.name].append((run.parent / "index", run))
    return dict(found)


def average(points: list[Point]) -> Point:
    """The mean in everything."""
    return Point(*np.mean([(p.flops, p.quality, p.query_terms, p.document_terms) for p in points], axis=0).tolist())


def draw(curve: dict[str, Point], lines: dict[str, float], measure_name: str) -> str:
    """The drawing as a file of its own; points stand in the order of their FLOPS metric, lines are level."""
    points = sorted((float(f"{point.flops:.3g}"), point.quality) for point in curve.values())
    if points[0][0] <= 0:
        raise SystemExit(
            "a model shares no term with its queries: its FLOPS metric is 0, which a logarithm cannot show"
        )
    ends = (points[0][0], points[-1][0])
    curves = {"by λ": points} | {name: [(end, value) for end in dict.fromkeys(ends)] for name, value in lines.items()}
    plain = line_plot(curves, x_label="FLOPS metric", y_label=measure_name)
    head, rest = plain.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg">{STYLE}{rest}\n'


def main() -> None:
    """Measure all points, print the table and write the drawing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--sweep", type=Path, help="what the recipe's variant wrote")
    parser.add_argument("--point", action="append", default=[], metavar="λ=INDEX:RUN")
    parser.add_argument("--line", action="append", default=[], metavar="NAME=RUN")
    parser.add_argument("--measure", default="nDCG@10")
    parser.add_argument("--svg", type=Path, required=True)
    chosen = parser.parse_args()
    collection = open_collection(chosen.collection)
    places = found_in(chosen.sweep, chosen.split) if chosen.sweep else {}
    for text in chosen.point:
        name, _, pair = text.partition("=")
        index, _, run = pair.rpartition(":")
        places.setdefault(name, []).append((Path(index), Path(run)))
    if not places:
        parser.error("no points: give --sweep with a finished recipe's output, or --point λ=INDEX:RUN")
    curve: dict[str, Point] = {}
    print(f"| λ | FLOPS metric | {chosen.measure} | active terms, query / document | seeds |\n|---|---:|---:|---:|---|")
    for name in sorted(places, key=float):
        each = [measure(collection, chosen.split, chosen.measure, index, run) for index, run in places[name]]
        point = curve[name] = average(each)
        seeds = " ".join(f"{one.quality:.4f}" for one in each)
        print(f"| {name} | {point.flops:.2f} | {point.quality:.4f} | {point.query_terms:.1f} / "
              f"{point.document_terms:.1f} | {seeds} |", flush=True)  # fmt: skip
    lines: dict[str, float] = {}
    for text in chosen.line:
        name, _, run = text.partition("=")
        lines[name] = quality(collection, chosen.split, chosen.measure, Path(run))
        print(f"| {name} | | {lines[name]:.4f} | | |")
    chosen.svg.write_text(draw(curve, lines, chosen.measure), encoding="utf-8")


if __name__ == "__main__":
    main()
