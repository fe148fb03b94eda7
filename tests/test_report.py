"""Reports: one content in five forms, and presets' averages over collections."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from rtk.errors import ConfigError
from rtk.eval.html import to_html
from rtk.eval.judgments import Judgments
from rtk.eval.measures import Evaluation, evaluate
from rtk.eval.presets import AVERAGES, PRESETS, aggregate, get_preset
from rtk.eval.report import Report, recall_curve, to_csv, to_json, to_markdown, to_text, write_per_query, write_report
from rtk.eval.run import Run
from rtk.eval.significance import compare
from rtk.eval.svg import difference_bars, nice_ticks
from rtk.ids import Ids

SCHEMA = json.loads((Path(__file__).parent.parent / "docs" / "schema" / "evaluation.schema.json").read_text())
NASTY = 'a<b>&"c|d*'


def runs() -> list[Run]:
    rng = np.random.default_rng(0)
    base = [(f"q{q}", [f"d{d}" for d in rng.permutation(40)[:30]], np.arange(30, 0, -1)) for q in range(20)]
    good = [(qid, [f"d{d}" for d in range(30)], np.arange(30, 0, -1)) for qid, _, _ in base]
    return [Run.from_lists(base, tag="base"), Run.from_lists(good, tag="good"), Run.from_lists(base[::-1], tag=NASTY)]


@pytest.fixture(scope="module")
def report() -> Report:
    judgments = Judgments.from_dict({f"q{q}": {f"d{d}": 1 + d % 3 for d in range(q % 4 + 1)} for q in range(21)})
    all_runs = runs()
    found = [evaluate(run, judgments, "nDCG@10 RR@10") for run in all_runs]
    comparison = compare(found[1], [found[0], found[2]], permutations=2000)
    curves = {run.tag: recall_curve(run, judgments, relevance_level=2) for run in all_runs}
    return Report("A <title>", found, comparison, curves, {"collection": "toy"})


def test_json_follows_the_schema(report: Report) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(SCHEMA)
    plain = Report("one", report.evaluations[:1])
    single = compare(*[Evaluation(name, Ids(["q"]), {"RR": np.asarray([value])}) for name, value in (("a", 0.0),)],
                     [Evaluation("b", Ids(["q"]), {"RR": np.asarray([1.0])})])  # fmt: skip
    alone = Report("one query", [Evaluation("a", Ids(["q"]), {"RR": np.zeros(1)},
                                            conventions=report.evaluations[0].conventions)], single)  # fmt: skip
    for text in (to_json(report), to_json(report, per_query=True), to_json(plain), to_json(alone)):
        validator.validate(json.loads(text))
    broken = json.loads(to_json(report)) | {"surprise": 1}
    assert list(validator.iter_errors(broken))


def test_json_holds_exact_values(report: Report) -> None:
    plain = json.loads(to_json(report, per_query=True))
    found = report.evaluations[1]
    assert plain["evaluations"][1]["means"]["nDCG@10"] == found.mean("nDCG@10")
    assert plain["evaluations"][1]["per_query"]["q3"]["RR@10"] == found["RR@10"][list(found.qids).index("q3")]


def test_csv_has_a_line_for_each_run_and_measure(report: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert [(row["run"], row["measure"]) for row in rows] == [
        (name, measure) for name in ("base", "good", NASTY) for measure in ("nDCG@10", "RR@10")
    ]
    for row in rows:
        found = next(found for found in report.evaluations if found.name == row["run"])
        assert float(row["mean"]) == found.mean(row["measure"])
        assert (row["baseline"] == "") == (row["run"] == "good")
    assert float(rows[0]["difference"]) < 0
    assert rows[0]["verdict"] == "worse"


def test_text_and_markdown_are_aligned_and_show_the_loss(report: Report) -> None:
    text = to_text(report)
    table = text.split("Against good")[1].splitlines()
    head = next(line for line in table if line.startswith("run"))
    rows = [line for line in table if line.startswith("base")]
    assert rows
    assert all(line.index("worse") == head.index("verdict") for line in rows)
    assert re.search(r"base +nDCG@10 +0\.\d{4} +-0\.\d{4} ", text)
    lines = [line for line in to_markdown(report).splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines if "verdict" in line or "worse" in line}) == 1
    assert 'a<b>&"c\\|d\\*' in to_markdown(report)


class _Balance(HTMLParser):
    """Collects tags and asserts that they close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_whole_and_loads_nothing(report: Report) -> None:
    page = to_html(report)
    parser = _Balance()
    parser.feed(page)
    assert not parser.open
    tags = [tag for tag, _ in parser.seen]
    assert tags.count("svg") == 1 + 4
    assert not {"script", "link", "img", "iframe", "object"} & set(tags)
    assert not [attrs for _, attrs in parser.seen if {"src", "href", "srcset"} & set(attrs)]
    assert "url(" not in page
    assert "http" not in page
    assert "@import" not in page
    assert "<title>A &lt;title&gt;</title>" in page
    assert "a&lt;b&gt;&amp;" in page
    assert NASTY not in page


def test_every_bar_says_its_query_and_shows_its_sign() -> None:
    values = [0.5, -0.25, 0.0]
    plot = ElementTree.fromstring(difference_bars(["a&b", "loser", "even"], values, label="x"))
    bars = plot.findall("rect")
    assert [bar.get("class") for bar in bars] == ["gain", "tie", "loss"]
    assert [bar.findtext("title") for bar in bars] == [
        "query a&b: +0.5000",
        "query even: +0.0000",
        "query loser: -0.2500",
    ]
    assert float(bars[0].get("height", 0)) == pytest.approx(2 * float(bars[2].get("height", 0)), abs=0.02)


def test_many_queries_are_grouped_so_that_the_page_stays_small() -> None:
    values = np.random.default_rng(0).normal(0, 0.1, 6980).tolist()
    plot = ElementTree.fromstring(difference_bars([str(row) for row in range(6980)], values, label="x"))
    assert len(plot.findall("rect")) == 400
    assert "6980 queries" in "".join(plot.itertext())


def test_ticks_are_round_and_inside() -> None:
    assert nice_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(-0.3, 0.3, 6) == [-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3]


def test_recall_rises_with_depth_up_to_the_list_s_length(report: Report) -> None:
    for curve in report.curves.values():
        assert [depth for depth, _ in curve] == [1, 2, 5, 10, 20, 50]
        assert [value for _, value in curve] == sorted(value for _, value in curve)


def test_files_take_their_form_from_the_name(report: Report, tmp_path: Path) -> None:
    for suffix in ("html", "json", "csv", "md", "txt"):
        write_report(report, tmp_path / f"r.{suffix}")
    assert (tmp_path / "r.txt").read_text() == to_text(report)
    with pytest.raises(ConfigError, match=r"\.html"):
        write_report(report, tmp_path / "r.pdf")
    write_per_query(report.evaluations, tmp_path / "q.tsv")
    rows = [line.split("\t") for line in (tmp_path / "q.tsv").read_text().splitlines()[1:]]
    assert len(rows) == 3 * 2 * 21
    by_run = [float(value) for run, _, measure, value in rows if (run, measure) == ("good", "nDCG@10")]
    assert by_run == report.evaluations[1]["nDCG@10"].tolist()


def means(value: float) -> Evaluation:
    return Evaluation("r", Ids(["q"]), {"nDCG@10": np.asarray([value])})


def test_presets_are_measures_that_can_be_computed() -> None:
    run, judgments = runs()[0], Judgments.from_dict({"q1": {"d1": 2}})
    for preset in PRESETS.values():
        assert len(evaluate(run, judgments, list(preset.measures)).means) == len(preset.measures)
    assert get_preset("msmarco-dev").order == "rank"
    assert all("(rel=2)" in name for name in get_preset("trec-dl-2021").measures if not name.startswith("nDCG"))
    with pytest.raises(ConfigError, match="did you mean 'trec-dl-2019'"):
        get_preset("trec-dl-209")


def test_cqadupstack_counts_once() -> None:
    forums = {name: means(0.1 * at) for at, name in enumerate(AVERAGES["cqadupstack"])}
    found = aggregate(forums | {"scifact": means(1.0)})
    assert found.rows["cqadupstack"]["nDCG@10"] == pytest.approx(0.55)
    assert found.means["nDCG@10"] == pytest.approx((0.55 + 1.0) / 2)
    del forums["cqadupstack/tex"]
    with pytest.raises(ConfigError, match="missing: cqadupstack/tex"):
        aggregate(forums)


def test_named_averages_need_exactly_their_collections() -> None:
    thirteen = {name: means(0.5) for name in AVERAGES["beir-13"]}
    assert len(thirteen) == 13
    found = aggregate(thirteen | {"msmarco": means(1.0)}, over="beir-13")
    assert found.means["nDCG@10"] == 0.5
    del thirteen["scifact"]
    with pytest.raises(ConfigError, match="missing: scifact"):
        aggregate(thirteen, over="beir-13")
    with pytest.raises(ConfigError, match="did you mean 'beir-13'"):
        aggregate(thirteen, over="beir13")
