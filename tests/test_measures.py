"""Evaluation: every value of pytrec_eval and ir-measures on the goldens, and equality with pytrec_eval at random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from rtk.errors import ConfigError, DataError
from rtk.eval import measures as measures_module
from rtk.eval.collection import Conventions
from rtk.eval.files import read_run
from rtk.eval.judgments import Judgments
from rtk.eval.measures import evaluate
from rtk.eval.qrels import read_qrels
from rtk.eval.run import Run

GOLDENS = Path(__file__).parent / "goldens" / "trec_eval"
EXPECTED = json.loads((GOLDENS / "expected.json").read_text())
PYTREC = EXPECTED["pytrec_eval-terrier 0.5.11 RelevanceEvaluator (per query; recip_rank and map without cutoff)"]
IR_MEASURES = EXPECTED["ir_measures 0.4.3 (default providers; 'all' = calc_aggregate)"]
NUMERIC = json.loads((GOLDENS / "ir_measures_numeric.json").read_text())
BEIR = json.loads((GOLDENS / "beir_evaluate.json").read_text())

NAMES = {
    "P_10": "P(rel={})@10", "map": "AP(rel={})", "map_cut_1000": "AP(rel={})@1000", "ndcg_cut_10": "nDCG@10",
    "recall_100": "R(rel={})@100", "recall_1000": "R(rel={})@1000", "recip_rank": "RR(rel={})",
}  # fmt: skip
# ir-measures leaves ties to the provider for these two; trec_eval's order gives other values (methods 7.3)
OTHER_TIES = {
    "RR@10": {"q1": 1 / 3, "q8": 0.5, "q9": 1.0, "all": 0.4166666666666667},
    "RR(rel=2)@10": {"q1": 1 / 3, "q8": 0.5, "all": 0.22916666666666666},
    "Judged@10": {"q1": 0.7, "all": 0.50625},
}


def run_of(lists: dict[str, dict[str, float]], order: Any = "score") -> Run:
    return Run.from_lists(((qid, list(docs), list(docs.values())) for qid, docs in lists.items()), order=order)


@pytest.fixture(scope="module")
def golden() -> tuple[Run, Judgments]:
    return read_run(GOLDENS / "run.txt"), read_qrels(GOLDENS / "qrels.txt")


@pytest.mark.parametrize("level", [1, 2])
def test_every_pytrec_eval_value(golden: tuple[Run, Judgments], level: int) -> None:
    expected = PYTREC[f"relevance_level={level}"]
    found = evaluate(*golden, [name.format(level) for name in NAMES.values()])
    rows = {qid: row for row, qid in enumerate(found.qids)}
    for qid, values in expected.items():
        for name, value in values.items():
            assert found[NAMES[name].format(level)][rows[qid]] == pytest.approx(value, abs=1e-12), (qid, name)
    assert found.missing == 1
    assert found.unjudged == 1


@pytest.mark.parametrize("name", [name for name, values in IR_MEASURES.items() if "all" in values])
def test_every_ir_measures_value(golden: tuple[Run, Judgments], name: str) -> None:
    expected = IR_MEASURES[name] | OTHER_TIES.get(name, {})
    found = evaluate(*golden, name)
    for qid, value in zip(found.qids, found[name], strict=True):
        assert value == pytest.approx(expected[qid], abs=1e-12), qid
    assert found.mean(name) == pytest.approx(expected["all"], abs=1e-12)


def test_each_provider_s_values(golden: tuple[Run, Judgments]) -> None:
    expected = EXPECTED["ir_measures providers"]["pytrec_eval"]
    found = evaluate(*golden, list(expected))
    for name, values in expected.items():
        assert dict(zip(found.qids, found[name], strict=True)) == pytest.approx(values, abs=1e-12)


@pytest.mark.parametrize("key", [key for key in NUMERIC if ": " in key])
def test_gains_judged_only_and_gdeval(key: str) -> None:
    provider, name = key.split(": ", 1)
    judged: dict[str, dict[str, int]] = {}
    for qid, doc, grade in NUMERIC["qrels (query, document, grade)"]:
        judged.setdefault(qid, {})[doc] = grade
    lists: dict[str, dict[str, float]] = {}
    for qid, doc, score in NUMERIC["run (query, document, score)"]:
        lists.setdefault(qid, {})[doc] = score
    found = evaluate(run_of(lists), Judgments.from_dict(judged), name)
    tolerance = 6e-6 if provider == "gdeval" else 1e-12  # gdeval prints five digits
    for qid, value in zip(found.qids, found[name], strict=True):
        assert value == pytest.approx(NUMERIC[key][qid], abs=tolerance)
    assert found.mean(name) == pytest.approx(NUMERIC[key]["aggregate"], abs=tolerance)


def test_exponential_gains_need_no_numeric_ids(golden: tuple[Run, Judgments]) -> None:
    found = evaluate(*golden, "nDCG(dcg='exp-log2')@10 nDCG(gains={2: 3, 3: 7})@10 nDCG@10")
    by_gains = found["nDCG(gains={2:3,3:7})@10"]
    assert found["nDCG(dcg='exp-log2')@10"].tolist() == by_gains.tolist()
    assert found.mean("nDCG@10") == pytest.approx(IR_MEASURES["nDCG@10"]["all"])


@pytest.mark.parametrize("drop", [True, False])
def test_beir_values_with_and_without_identical_ids(drop: bool) -> None:
    key = f"evaluate(ignore_identical_ids={drop})" + (" (default)" if drop else "")
    names = {"NDCG": "nDCG", "MAP": "AP", "Recall": "R", "P": "P"}
    asked = {f"{theirs}@{k}": f"{ours}@{k}" for theirs, ours in names.items() for k in BEIR["k_values"]}
    run, judgments = run_of(BEIR["results"]), Judgments.from_dict(BEIR["qrels"])
    found = evaluate(run, judgments, list(asked.values()), conventions=Conventions(drop_identical_ids=drop))
    for theirs, ours in asked.items():  # BEIR divides by the 4 queries in both, we by all 5 judged ones
        assert found.mean(ours) * 5 / 4 == pytest.approx(BEIR[key][theirs], abs=6e-6), theirs
    assert found.dropped == (1 if drop else 0)
    assert len(run.codes) == sum(map(len, BEIR["results"].values()))


def test_beir_measures_over_all_judged_queries() -> None:
    """BEIR's own mrr and accuracy leave ties in the order of their input: the order by rank, to us."""
    run, judgments = run_of(BEIR["results"], "rank"), Judgments.from_dict(BEIR["qrels"])
    found = evaluate(run, judgments, [f"{name}@{k}" for name in ("RR", "Success") for k in BEIR["k_values"]])
    for k in BEIR["k_values"]:
        assert found.mean(f"Success@{k}") == pytest.approx(BEIR["evaluate_custom"]["acc"][f"Accuracy@{k}"])
        assert found.mean(f"RR@{k}") == pytest.approx(BEIR["evaluate_custom"]["mrr"][f"MRR@{k}"], abs=6e-6)


GRADES = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(-2, 3), min_size=1, max_size=7)
DOCS = st.dictionaries(st.sampled_from("abcdefghijkl"), st.sampled_from([1.0, 2.0, 2.00000001, -1.0]), max_size=11)
JUDGED = st.dictionaries(st.sampled_from(["1", "2", "3", "4"]), GRADES, min_size=1)
LISTS = st.dictionaries(st.sampled_from(["1", "2", "3", "4", "5"]), DOCS)
PAIRS = {
    "ndcg_cut_3": "nDCG@3", "ndcg": "nDCG", "map": "AP(rel={})", "map_cut_3": "AP(rel={})@3", "P_3": "P(rel={})@3",
    "recall_3": "R(rel={})@3", "recip_rank": "RR(rel={})", "success_1": "Success(rel={})@1", "bpref": "Bpref(rel={})",
    "Rprec": "Rprec(rel={})", "num_ret": "NumRet", "set_P": "SetP(rel={})", "iprec_at_recall_0.50": "IPrec(rel={})@0.5",
}  # fmt: skip


@given(JUDGED, LISTS, st.integers(1, 2), st.booleans(), st.integers(1, 20))
@settings(max_examples=150, deadline=None)
def test_equals_pytrec_eval_on_runs_with_many_ties(
    judged: dict[str, dict[str, int]], lists: dict[str, dict[str, float]], level: int, only: bool, block: int
) -> None:
    asked = [name for name in PAIRS if not (only and name == "bpref")]
    # pytrec_eval may crash on negative grades, which are no judgments to trec_eval; the goldens hold real ones
    known = {qid: {doc: grade for doc, grade in docs.items() if grade >= 0} or {"-": 0} for qid, docs in judged.items()}
    theirs = pytrec_eval.RelevanceEvaluator(known, asked, relevance_level=level, judged_docs_only_flag=only)
    expected = theirs.evaluate(lists)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures_module, "_BLOCK", block)
        found = evaluate(
            run_of(lists), Judgments.from_dict(judged), [PAIRS[name].format(level) for name in asked], judged_only=only
        )
    assert sorted(found.qids) == sorted(judged)
    for row, qid in enumerate(found.qids):
        for name in asked:
            value = found[PAIRS[name].format(level)][row]
            wanted = expected.get(qid, {}).get(name, 0.0)
            wanted = 0.0 if wanted != wanted else wanted  # IPrec of a query without relevant documents is 0 to us
            assert value == pytest.approx(wanted, abs=1e-12), (qid, name)
    assert found.missing == sum(not lists.get(qid) for qid in judged)
    assert found.unjudged == sum(qid not in judged for qid in lists)


@given(JUDGED, LISTS, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_reciprocal_rank_at_k_is_that_of_the_cut_list(judged: dict, lists: dict, k: int) -> None:
    run, judgments = run_of(lists), Judgments.from_dict(judged)
    cut = evaluate(run.top(k), judgments, "RR RR(judged_only=True)@2")
    assert evaluate(run, judgments, f"RR@{k}")[f"RR@{k}"].tolist() == cut["RR"].tolist()


def test_unjudged_documents_leave_before_the_cut() -> None:
    run, judgments = run_of({"q": {"x": 3.0, "y": 2.0, "a": 1.0}}), Judgments.from_dict({"q": {"a": 1}})
    found = evaluate(run, judgments, "RR(judged_only=True)@1 RR@1 P(judged_only=True)@1")
    assert found.means == {"RR(judged_only=True)@1": 1.0, "RR@1": 0.0, "P(judged_only=True)@1": 1.0}


def test_rank_order_is_obeyed() -> None:
    lists, judgments = {"q": {"b": 1.0, "a": 2.0}}, Judgments.from_dict({"q": {"b": 1}})
    assert evaluate(run_of(lists), judgments, "RR").mean("RR") == 0.5
    assert evaluate(run_of(lists, "rank"), judgments, "RR").mean("RR") == 1.0


def test_excluded_documents_leave_before_scoring() -> None:
    run = run_of({"q": {"x": 3.0, "y": 2.0, "a": 1.0}, "p": {"x": 2.0, "a": 1.0}})
    judgments = Judgments.from_dict({"q": {"a": 1}, "p": {"a": 1}})
    conventions = Conventions(excluded={"q": ["x", "y", "y", "unknown"], "other": ["a"]})
    found = evaluate(run, judgments, "RR@10", conventions=conventions)
    assert dict(zip(found.qids, found["RR@10"], strict=True)) == {"q": 1.0, "p": 0.5}
    assert found.dropped == 2


def test_a_list_that_conventions_empty_counts_as_missing() -> None:
    run, judgments = run_of({"q": {"q": 1.0}}), Judgments.from_dict({"q": {"q": 1}})
    found = evaluate(run, judgments, "R@5", conventions=Conventions(drop_identical_ids=True))
    assert (found.mean("R@5"), found.missing, found.dropped) == (0.0, 1, 1)


def test_counts_are_summed_not_averaged(golden: tuple[Run, Judgments]) -> None:
    found = evaluate(*golden, "NumRet NumQ")
    judged = [entry for entry in golden[0] if entry.qid in golden[1]]
    assert found.means == {"NumRet": sum(len(entry.documents) for entry in judged), "NumQ": 7}


def test_a_run_of_another_collection_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    found = evaluate(run_of({"x": {"a": 1.0}}), Judgments.from_dict({"q": {"a": 1}}), "RR")
    assert (found.mean("RR"), found.missing, found.unjudged) == (0.0, 1, 1)
    assert "none of the 1 judged queries is in the run" in caplog.text


def test_names_have_one_spelling_inside() -> None:
    found = evaluate(run_of({"q": {"a": 1.0}}), Judgments.from_dict({"q": {"a": 1}}), ["MRR@10, NDCG@10", "RR@10"])
    assert found.measures == ("RR@10", "nDCG@10")
    assert found.mean("MRR@10") == 1.0
    with pytest.raises(ConfigError, match=r"did you mean 'nDCG@10'"):
        found["nDCG@100"]


def test_unknown_measures_come_all_at_once_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as caught:
        evaluate(run_of({}), Judgments.from_dict({"q": {"a": 1}}), "nDGC@10 RR@10 R AP(foo=1) alpha_nDCG@10 P@0 nDCG@")
    text = str(caught.value)
    assert len(caught.value.problems) == 6
    assert "nDGC@10: no such measure (did you mean 'nDCG'?)" in text
    assert "R: it needs a cutoff" in text
    assert "'foo'" in text
    assert "RR@10:" not in "\n".join(caught.value.problems)


def test_no_judgments_and_several_lists_are_refused() -> None:
    run = run_of({"q": {"a": 1.0}})
    with pytest.raises(DataError, match="no judgments"):
        evaluate(run, Judgments.from_dict({}), "RR")
    with pytest.raises(DataError, match="list_id"):
        evaluate(run.replace(columns={"list_id": run.codes}), Judgments.from_dict({"q": {"a": 1}}), "RR")
