"""Reranking a run: candidates, what stays below them, failures, stops and going on."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtk.errors import BackendError, ConfigError, DataError, OutputExists
from rtk.eval.collection import open_collection
from rtk.eval.files import read_run
from rtk.eval.run import Run
from rtk.retrieval import Hybrid, Pipeline, Rerank, RerankSettings, Retriever, build_index, rerank_run
from rtk.retrieval.rerankers import (
    Candidate,
    PredictReranker,
    Request,
    Usage,
    ranked_result,
    read_candidates,
    rerank_with_report,
    write_candidates,
)
from rtk.retrieval.rerankers.candidates import CollectionTexts
from rtk.retrieval.rerankers.lists import strictly_falling
from rtk.retrieval.rerankers.part import part_path

TEXTS = {f"d{number}": f"text {number}" for number in range(8)}


@pytest.fixture
def collection(beir_folder):
    return open_collection(
        beir_folder(
            corpus=[{"_id": name, "text": text} for name, text in TEXTS.items()],
            queries=[{"_id": f"q{number}", "text": f"query {number}"} for number in range(4)],
            qrels={
                "test": [
                    ("q0", "d7", 1),
                    ("q0", "d1", 1),
                    ("q1", "d4", 2),
                    ("q1", "d0", 0),
                    ("q2", "d2", 1),
                    ("q3", "d3", 1),
                ]
            },
        )
    )


def first_stage(queries: int = 4, documents: int = 6) -> Run:
    lists = [
        (f"q{row}", [f"d{place}" for place in range(documents)], np.arange(documents, 0, -1.0))
        for row in range(queries)
    ]
    return Run.from_lists(lists, tag="first")


class ByNumber:
    """Orders by the number in the text, larger first; counts what it sees and fails where it is told."""

    def __init__(self, *, fail: tuple[str, ...] = (), after: int | None = None) -> None:
        self.fail, self.after = fail, after
        self.seen: list[Request] = []

    def identity(self):
        return {"reranker": "by number"}

    def rerank(self, requests):
        for request in requests:
            if request.qid in self.fail:
                raise RuntimeError(f"no answer for {request.query}")
            if self.after is not None and len(self.seen) >= self.after:
                raise KeyboardInterrupt
            self.seen.append(request)
            values = [float(text.rsplit(" ", 1)[1]) for text in request.texts]
            yield ranked_result(request, values, usage=Usage(calls=1))


def lists_of(run: Run) -> dict[str, list[str]]:
    return {entry.qid: entry.documents for entry in run}


def test_candidates_come_with_texts_in_first_stage_order(collection):
    reranker = ByNumber()
    rerank_run(first_stage(1), collection, "test", reranker, depth=3)
    request = reranker.seen[0]
    assert (request.qid, request.query) == ("q0", "query 0")
    assert request.candidates == (
        Candidate("d0", "text 0", 6.0),
        Candidate("d1", "text 1", 5.0),
        Candidate("d2", "text 2", 4.0),
    )


def test_documents_below_the_depth_stay_below_in_first_stage_order(collection):
    run = rerank_run(first_stage(), collection, "test", ByNumber(), depth=3)
    assert lists_of(run) == {f"q{row}": ["d2", "d1", "d0", "d3", "d4", "d5"] for row in range(4)}
    assert (np.diff(run["q0"].scores) < 0).all()
    cut = rerank_run(first_stage(), collection, "test", ByNumber(), depth=3, below="cut")
    assert lists_of(cut) == {f"q{row}": ["d2", "d1", "d0"] for row in range(4)}


def test_columns_keep_what_was_known(collection):
    run = rerank_run(first_stage(1), collection, "test", ByNumber(), depth=3)
    np.testing.assert_array_equal(run.columns["raw"], [2, 1, 0, np.nan, np.nan, np.nan])
    assert run.columns["first_rank"].tolist() == [3, 2, 1, 4, 5, 6]
    assert run.columns["first_score"].tolist() == [4, 5, 6, 3, 2, 1]
    assert run.columns["calibrated"].tolist() == [True] * 3 + [False] * 3
    assert not rerank_run(first_stage(1), collection, "test", ByNumber(), raw=False).columns


class Constant:
    def rerank(self, requests):
        return (ranked_result(request, [5.0] * len(request.candidates)) for request in requests)


def test_ties_keep_the_first_order_in_every_form_of_the_run(collection, tmp_path):
    """A run sorts equal scores by document id, descending; the reranker's order must survive that."""
    for suffix in ("trec", "trec.gz", "parquet"):
        out = tmp_path / f"run.{suffix}"
        run = rerank_run(first_stage(), collection, "test", Constant(), depth=4, out=out)
        expected = {f"q{row}": [f"d{place}" for place in range(6)] for row in range(4)}
        assert lists_of(run) == lists_of(read_run(out)) == expected
    assert run.columns["raw"][:4].tolist() == [5.0] * 4


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)
        | st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1.0]),
        max_size=30,
    )
)
def test_strictly_falling(values):
    given_scores = np.sort(np.asarray(values, dtype=np.float32))[::-1]
    scores = strictly_falling(given_scores)
    assert scores.dtype == np.float32
    assert (scores[1:] < scores[:-1]).all()
    assert (scores <= given_scores).all()
    distinct = np.flatnonzero(np.diff(given_scores, prepend=np.inf) < 0)
    if len(distinct) == len(values):
        assert np.array_equal(scores, given_scores), "scores that fall already stay as they are"


class TestPositives:
    def test_missed_and_deep_positives_become_candidates(self, collection):
        reranker = ByNumber()
        run = rerank_run(first_stage(2), collection, "test", reranker, depth=2, add_positives=True)
        assert [request.ids for request in reranker.seen] == [("d0", "d1", "d7"), ("d0", "d1", "d4")]
        assert lists_of(run) == {
            "q0": ["d7", "d1", "d0", "d2", "d3", "d4", "d5"],
            "q1": ["d4", "d1", "d0", "d2", "d3", "d5"],
        }
        added = dict(
            zip([(entry.qid, name) for entry in run for name in entry.documents], run.columns["added"], strict=True)
        )
        assert {pair for pair, flag in added.items() if flag} == {("q0", "d7"), ("q1", "d4")}
        assert run.columns["first_rank"][0] == 0
        assert np.isnan(run.columns["first_score"][0])
        assert run.columns["first_rank"][7] == 5
        assert reranker.seen[0].candidates[2].score == 5.0, "the lowest of the list"

    def test_grades_below_do_not_count(self, collection):
        reranker = ByNumber()
        rerank_run(first_stage(2), collection, "test", reranker, depth=2, add_positives=True, positive_grade=2)
        assert [request.ids for request in reranker.seen] == [("d0", "d1"), ("d0", "d1", "d4")]

    def test_a_split_says_what_is_positive(self, collection):
        with pytest.raises(ConfigError, match="needs a split"):
            rerank_run(first_stage(), collection, None, ByNumber(), add_positives=True)


class TestFailures:
    def test_stop_is_the_default(self, collection):
        with pytest.raises(RuntimeError, match="no answer for query 1"):
            rerank_run(first_stage(), collection, "test", ByNumber(fail=("q1",)))

    def test_count_keeps_that_query_s_order_and_says_so(self, collection):
        source = CollectionTexts(collection.documents, collection.queries("test"))
        done = rerank_with_report(first_stage(), source, ByNumber(fail=("q1", "q3")), RerankSettings(on_error="count"))
        assert lists_of(done.run)["q1"] == lists_of(first_stage())["q1"]
        assert lists_of(done.run)["q2"] == lists_of(first_stage())["q2"][::-1]
        assert [qid for qid, _ in done.report.failed] == ["q1", "q3"]
        assert "RuntimeError: no answer for query 1" in done.report.failed[0][1]
        assert "2, first ('q1'" in done.report.lines()[-1]
        assert done.report.usage.calls == 2

    def test_a_reranker_s_own_error_is_a_failure_too(self, collection):
        class Sorry:
            def rerank(self, requests):
                from rtk.retrieval.rerankers.base import failed_result

                return (failed_result(request, "quota") for request in requests)

        with pytest.raises(BackendError, match="'q0' could not be reranked: quota"):
            rerank_run(first_stage(), collection, "test", Sorry())
        run = rerank_run(first_stage(), collection, "test", Sorry(), on_error="count")
        assert lists_of(run) == lists_of(first_stage())

    def test_a_contract_that_is_broken(self, collection):
        class Losing:
            def rerank(self, requests):
                for request in requests:
                    yield ranked_result(Request(request.qid, request.query, request.candidates[1:]), [1.0] * 5)

        with pytest.raises(BackendError, match=r"1 lost \('d0'\)"):
            rerank_run(first_stage(), collection, "test", Losing())

    def test_bugs_are_never_counted(self, collection):
        class Buggy:
            def rerank(self, requests):
                raise AttributeError("oops")

        with pytest.raises(AttributeError):
            rerank_run(first_stage(), collection, "test", Buggy(), on_error="count")

    def test_documents_and_queries_that_are_not_there(self, collection):
        strange = Run.from_lists([("q1", ["d0", "nowhere"], [2.0, 1.0])])
        with pytest.raises(DataError, match="'nowhere' of query 'q1' is not in tiny"):
            rerank_run(strange, collection, "test", ByNumber(), on_error="count")
        with pytest.raises(DataError, match=r"query 'q9'.*check the split"):
            rerank_run(Run.from_lists([("q9", ["d0"], [1.0])]), collection, "test", ByNumber())

    def test_a_failure_that_is_about_no_query_stops(self, collection):
        class Down:
            def rerank(self, requests):
                raise ConnectionError("nobody there")

        with pytest.raises(ConnectionError):
            rerank_run(first_stage(), collection, "test", Down(), on_error="count")

    def test_too_few_and_too_many_results(self, collection):
        class Fewer(ByNumber):
            def rerank(self, requests):
                return iter(list(super().rerank(requests))[:-1])

        class More(ByNumber):
            def rerank(self, requests):
                answers = list(super().rerank(requests))
                return iter([*answers, answers[0]])

        with pytest.raises(BackendError, match=r"Fewer gave no result for 1 requests \(first: query 'q3'"):
            rerank_run(first_stage(), collection, "test", Fewer())
        with pytest.raises(BackendError, match="More gave a result that no request asked for"):
            rerank_run(first_stage(), collection, "test", More())

    def test_queries_of_a_batch_that_fails_are_tried_alone(self, collection):
        class InTwos(ByNumber):
            def rerank(self, requests):
                waiting = iter(requests)
                while pair := list(islice(waiting, 2)):
                    yield from list(super().rerank(pair))

        source = CollectionTexts(collection.documents, collection.queries("test"))
        done = rerank_with_report(first_stage(), source, InTwos(fail=("q1",)), RerankSettings(on_error="count"))
        assert [qid for qid, _ in done.report.failed] == ["q1"]
        assert all(lists_of(done.run)[qid][0] == "d5" for qid in ("q0", "q2", "q3"))

    def test_settings_that_cannot_be(self, collection):
        with pytest.raises(ConfigError, match=r"(?s)depth 0.*on_error 'skip'.*below 'drop'"):
            rerank_run(first_stage(), collection, "test", ByNumber(), depth=0, on_error="skip", below="drop")


class TestResuming:
    def test_a_stop_loses_at_most_the_current_batch(self, collection, tmp_path):
        out = tmp_path / "out.parquet"
        undisturbed = rerank_run(first_stage(), collection, "test", ByNumber(), out=tmp_path / "whole.parquet")
        with pytest.raises(KeyboardInterrupt):
            rerank_run(first_stage(), collection, "test", ByNumber(after=2), out=out)
        assert not out.exists()
        reranker = ByNumber()
        resumed = rerank_run(first_stage(), collection, "test", reranker, out=out)
        assert [request.qid for request in reranker.seen] == ["q2", "q3"]
        assert resumed == undisturbed == read_run(out)
        assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
        assert not part_path(out).exists()

    def test_what_was_cut_is_counted_over_a_stop(self, collection, tmp_path):
        class Cutting(ByNumber):
            def rerank(self, requests):
                for result in super().rerank(requests):
                    yield replace(result, usage=result.usage + Usage(cut=2))

        source = CollectionTexts(collection.documents, collection.queries("test"))
        out = tmp_path / "out.parquet"
        with pytest.raises(KeyboardInterrupt):
            rerank_with_report(first_stage(), source, Cutting(after=2), out=out)
        report = rerank_with_report(first_stage(), source, Cutting(), out=out).report
        assert (report.resumed, report.usage.cut) == (2, 8)
        every = rerank_with_report(first_stage(), source, Cutting()).report
        assert 0 < report.candidates_now < every.candidates_now == every.candidates  # the speed is of this call alone
        assert report.seconds > 0
        assert "candidates a second" in report.lines()[2]
        assert "prompts or pairs cut to fit the model: 8" in report.lines()

    @pytest.mark.parametrize("cut", [1, 30, 100])
    def test_a_line_cut_short_is_done_again(self, collection, tmp_path, cut):
        out = tmp_path / "out.parquet"
        with pytest.raises(KeyboardInterrupt):
            rerank_run(first_stage(), collection, "test", ByNumber(after=2), out=out)
        data = part_path(out).read_bytes()
        part_path(out).write_bytes(data[:-cut])
        reranker = ByNumber()
        run = rerank_run(first_stage(), collection, "test", reranker, out=out)
        assert run == rerank_run(first_stage(), collection, "test", ByNumber())
        assert [request.qid for request in reranker.seen] == ["q1", "q2", "q3"]

    def test_a_header_cut_short_begins_anew(self, collection, tmp_path):
        out = tmp_path / "out.parquet"
        part_path(out).write_text('{"rtk_rer')
        assert len(rerank_run(first_stage(), collection, "test", ByNumber(), out=out)) == 4

    def test_another_job_is_refused_and_says_what_differs(self, collection, tmp_path):
        out = tmp_path / "out.parquet"
        with pytest.raises(KeyboardInterrupt):
            rerank_run(first_stage(), collection, "test", ByNumber(after=2), out=out)
        with pytest.raises(
            ConfigError, match=r"(?s)finished queries of another job.*candidates: was.*depth: was 100, is now 5"
        ):
            rerank_run(first_stage(), collection, "test", ByNumber(), out=out, depth=5)
        with pytest.raises(ConfigError, match=r"reranker: was \{'reranker': 'by number'\}"):
            rerank_run(first_stage(), collection, "test", Constant(), out=out)
        other = first_stage().replace(scores=first_stage().scores * 2)
        with pytest.raises(ConfigError, match="candidates: was"):
            rerank_run(other, collection, "test", ByNumber(), out=out)
        again = ByNumber()
        rerank_run(first_stage(), collection, "test", again, out=out, depth=5, overwrite=True)
        assert len(again.seen) == 4

    def test_failed_queries_are_tried_again(self, collection, tmp_path):
        out = tmp_path / "out.parquet"
        with pytest.raises(KeyboardInterrupt):
            rerank_run(first_stage(), collection, "test", ByNumber(fail=("q0",), after=2), out=out, on_error="count")
        reranker = ByNumber()
        run = rerank_run(first_stage(), collection, "test", reranker, out=out, on_error="count")
        assert [request.qid for request in reranker.seen] == ["q0", "q3"]
        assert lists_of(run)["q0"] == lists_of(first_stage())["q0"][::-1]

    def test_an_output_that_is_there(self, collection, tmp_path):
        out = tmp_path / "out.trec"
        out.write_text("mine")
        reranker = ByNumber()
        with pytest.raises(OutputExists):
            rerank_run(first_stage(), collection, "test", reranker, out=out)
        assert not reranker.seen
        assert out.read_text() == "mine"
        rerank_run(first_stage(), collection, "test", reranker, out=out, overwrite=True)
        assert len(read_run(out)) == 4

    def test_two_at_once(self, collection, tmp_path):
        out = tmp_path / "out.trec"

        class Meanwhile(ByNumber):
            def rerank(self, requests):
                with pytest.raises(ConfigError, match="being written by another process"):
                    rerank_run(first_stage(), collection, "test", ByNumber(), out=out)
                return super().rerank(requests)

        assert len(rerank_run(first_stage(), collection, "test", Meanwhile(), out=out)) == 4

    def test_a_part_file_that_is_something_else(self, collection, tmp_path):
        out = tmp_path / "out.trec"
        part_path(out).write_text('{"a": 1}\nnot json\n')
        with pytest.raises(DataError, match=r"out\.trec\.part\.jsonl.*not a part file"):
            rerank_run(first_stage(), collection, "test", ByNumber(), out=out)


class TestCandidateFiles:
    @pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz"])
    def test_in_place_of_a_collection(self, tmp_path, name):
        requests = [
            Request("q0", "query 0", (Candidate("d é", "text 3", 0.5), Candidate("007", "text 9", 0.75))),
            Request("q1", "query 1", ()),
            Request("q2", "query 2", (Candidate("7", "text 1", -1.0), Candidate("d é", "text 2", -1.0))),
        ]
        write_candidates(requests, tmp_path / name)
        file = read_candidates(tmp_path / name)
        reranker = ByNumber()
        run = rerank_run(file.run, file, None, reranker, out=tmp_path / "out.parquet")
        assert reranker.seen == requests, "the file's order, whatever the scores; texts of their own query"
        assert lists_of(run) == {"q0": ["007", "d é"], "q1": [], "q2": ["d é", "7"]}

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("{", r"c\.jsonl:2.*JSON"),
            ('{"qid": "q", "candidates": []}', r"c\.jsonl:2.*'query'"),
            ('{"qid": 7, "query": "x", "candidates": []}', r"c\.jsonl:2.*'qid'"),
            ('{"qid": "q", "query": "x", "candidates": [7]}', r"c\.jsonl:2.*'candidates'"),
            ('{"qid": "q", "query": "x", "candidates": [{"docid": "d"}]}', r"c\.jsonl:2.*'text'"),
            ('{"qid": "q", "query": "x", "candidates": [{"docid": "d", "text": "", "score": NaN}]}', r"2.*'score'"),
            ('{"qid": "a", "query": "x", "candidates": []}', r"c\.jsonl:2.*query 'a' stands on line 1 already"),
            (
                '{"qid": "q", "query": "x", "candidates": [{"docid": "d", "text": ""}, {"docid": "d", "text": ""}]}',
                r"c\.jsonl:2.*'q' has candidate 'd' twice",
            ),
        ],
    )
    def test_bad_lines(self, tmp_path, line, said):
        path = tmp_path / "c.jsonl"
        path.write_text('{"qid": "a", "query": "x", "candidates": []}\n' + line + "\n")
        with pytest.raises(DataError, match=said):
            read_candidates(path)

    def test_cut_short(self, tmp_path):
        path = tmp_path / "c.jsonl.gz"
        rows = "".join(json.dumps({"qid": f"q{row}", "query": "x" * 50, "candidates": []}) + "\n" for row in range(500))
        path.write_bytes(gzip.compress(rows.encode())[:-30])
        with pytest.raises(DataError, match="cut short"):
            read_candidates(path)

    def test_no_judgments(self, tmp_path):
        write_candidates([Request("q0", "x", ())], tmp_path / "c.jsonl")
        file = read_candidates(tmp_path / "c.jsonl")
        with pytest.raises(ConfigError, match="no judgments"):
            rerank_run(file.run, file, None, ByNumber(), add_positives=True)


class TestPipelines:
    @pytest.fixture
    def bm25(self, collection, tmp_path):
        build_index(collection, tmp_path / "bm25")
        return Retriever.open(tmp_path / "bm25")

    def test_search_then_rerank(self, bm25, collection):
        queries = collection.queries("test")
        reranker = ByNumber()
        run = (bm25 >> Rerank(reranker, collection.documents, depth=5)).run(queries, 2, tag="both")
        assert run.tag == "both"
        assert all(len(request.candidates) <= 5 for request in reranker.seen)
        found = bm25.run(queries, 5)
        for entry in run:
            assert entry.documents == sorted(found[entry.qid].documents, reverse=True)[:2]

    def test_hybrid_fuses_what_its_searchers_find(self, bm25, collection):
        from rtk.eval.fusion import fuse

        class Backwards:
            def run(self, queries, k, *, tag=None, exclude=None):
                return bm25.run(queries, k, exclude=exclude).replace(
                    scores=-bm25.run(queries, k).scores, tag="backwards"
                )

        queries = collection.queries("test")
        hybrid = Hybrid([bm25, Backwards()], weights=[1, 2])
        expected = fuse([bm25.run(queries, 4), Backwards().run(queries, 4)], weights=[1, 2], depth=4)
        assert hybrid.run(queries, 4) == expected
        longer = hybrid >> Rerank(PredictReranker(_Length()), collection.documents, depth=3) >> _Nothing()
        assert isinstance(longer, Pipeline)
        assert len(longer.steps) == 2
        assert max(len(entry.documents) for entry in longer.run(queries, 3)) <= 3

    def test_one_searcher_is_no_hybrid(self, bm25):
        with pytest.raises(ConfigError, match="two or more"):
            Hybrid([bm25])


class _Length:
    def predict(self, pairs):
        return [len(text) for _, text in pairs]


class _Nothing:
    depth = 0

    def __call__(self, run, queries):
        return run
