"""FLOPS, L1 and their schedules, rankings over sparse scores: the authors' own numbers, and what must hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rtk.errors import BackendError
from rtk.retrieval.losses.batch import DenseBatch
from rtk.retrieval.losses.context import LossContext
from rtk.retrieval.losses.contrastive import info_nce
from rtk.retrieval.losses.dense_terms import DENSE_TERMS
from rtk.retrieval.losses.distillation import kl_distillation, margin_mse, margin_mse_lists
from rtk.retrieval.losses.modules import InBatchLoss
from rtk.retrieval.losses.options import LOSSES
from rtk.retrieval.losses.ranking import rank_net
from rtk.retrieval.losses.regularisation import active_terms, anti_collapse, expected_flops, flops, l1, schedule
from rtk.retrieval.losses.sparse_options import ActiveLimits
from rtk.retrieval.losses.sparse_watch import ActiveWatch

FOLDER = Path(__file__).parent / "goldens" / "sparse"
REGULARISERS = json.loads((FOLDER / "regularisers.json").read_text())
SCHEDULES = json.loads((FOLDER / "lambda_schedules.json").read_text())
RANKING = json.loads((FOLDER / "ranking_losses.json").read_text())
LIBRARY = json.loads((FOLDER / "sentence_transformers_losses.json").read_text())
ROWS = REGULARISERS["inputs"]
HF = RANKING["naver_hf_IRTrainer_compute_loss"]
NAVER = RANKING["naver_pairwise"]
OPENSEARCH = RANKING["opensearch_losses"]


def rows(name: str, *, gradient: bool = False) -> Tensor:
    return torch.tensor(ROWS[name]).requires_grad_(gradient)


def close(found: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-5, atol=1e-7)


# --- regularisers ---


def test_regularisers_are_naver_s_with_their_gradients():
    expected = REGULARISERS["naver"]["dense_rows_4x8"]
    for function, name in ((flops, "FLOPS"), (l1, "L1")):
        given = rows("dense_rows_4x8", gradient=True)
        value = function(given)
        close(value.detach(), expected[name])
        value.backward()
        assert given.grad is not None
        close(given.grad, expected[f"{name}_grad"])
    active = active_terms(rows("dense_rows_4x8")).float().mean()
    close(active, expected["L0"])
    close(1 - active / 8, expected["SparsityRatio(dim=8)"])
    trainer = REGULARISERS["naver_hf"]["dense_rows_4x8"]
    close(flops(rows("dense_rows_4x8")), trainer["_flops"])
    close(l1(rows("dense_rows_4x8")), trainer["_L1"])


def test_weights_below_0_count_by_their_size_but_in_sentence_transformers():
    signed = rows("signed_2x4")
    close(l1(signed), REGULARISERS["naver"]["signed_2x4"]["L1"])
    close(flops(signed), REGULARISERS["naver"]["signed_2x4"]["FLOPS_abs_inside_mean"])
    library = REGULARISERS["sentence_transformers"]["signed_2x4"]["threshold=None (no abs)"]
    close(flops(signed, absolute=False), library)


def test_flops_of_parts_are_not_flops_of_the_whole():
    six, expected = rows("six_rows_6x4"), REGULARISERS["naver"]["six_rows_6x4"]
    close(flops(six), expected["FLOPS_all_six"])
    for pair in ("0_3", "1_4", "2_5"):
        close(flops(six[[int(row) for row in pair.split("_")]]), expected[f"FLOPS_rows_{pair}"])


GROUPED = [
    (name, key)
    for name, values in sorted(REGULARISERS["opensearch"].items())
    if isinstance(values, dict)
    for key in values
]


@pytest.mark.parametrize(("name", "key"), GROUPED)
def test_groups_and_thresholds_are_opensearch_s(name: str, key: str):
    settings = dict(part.split("=") for part in key.removeprefix("grad,").split(","))
    threshold = None if settings["flops_threshold"] == "None" else int(settings["flops_threshold"])
    given = rows(name, gradient=True)
    value = flops(given.view(-1, int(settings["group_num"]), given.shape[1]), threshold=threshold)
    if key.startswith("grad,"):
        value.backward()
        assert given.grad is not None
        close(given.grad, REGULARISERS["opensearch"][name][key])
    else:
        close(value.detach(), REGULARISERS["opensearch"][name][key])


@pytest.mark.parametrize("name", ["dense_rows_4x8", "six_rows_6x4"])
def test_thresholds_are_sentence_transformers(name: str):
    for key, expected in REGULARISERS["sentence_transformers"][name].items():
        threshold = None if key.endswith("None") else int(key[-1])
        close(flops(rows(name), threshold=threshold), expected)


def test_term_weights_multiply_squares_and_sums():
    given, weights = rows("dense_rows_4x8"), torch.arange(8.0)
    wanted = sum(float(weights[j]) * float(given[:, j].mean()) ** 2 for j in range(8))
    assert float(flops(given, term_weights=weights)) == pytest.approx(wanted)
    assert float(l1(given, term_weights=weights)) == pytest.approx(float((given * weights).sum() / 4))
    # contributions u = c w under weights 1 / c² cost what w does: IDF in the matching, or in the penalty
    assert float(flops(given * 3, term_weights=torch.full((8,), 1 / 9))) == pytest.approx(float(flops(given)))


def test_expected_flops_counts_terms_that_meet():
    queries = torch.tensor([[1.0, 0, 0], [2.0, 3, 0]])
    documents = torch.tensor([[5.0, 0, 1], [0, 1, 1.0]])
    assert float(expected_flops(queries, documents)) == pytest.approx(1 * 0.5 + 0.5 * 0.5)


# --- schedules ---


def shares(source: str, key: str) -> tuple[float, dict[str, float]]:
    """λ (or its maximum) of a golden's key, and its values."""
    values = SCHEDULES[source][key]
    given = dict(part.split("=") for part in key.split(",") if "=" in part)
    return float(given.get("lambda") or given.get("target") or given["max"]), values.get("values", values)


CASES = [
    *(("naver_RegWeightScheduler", key, "naver-iteration", 1) for key in ("lambda=0.4,T=50000", "lambda=0.0003,T=3")),
    ("naver_RegWeightScheduler", "lambda=0.5,T=50000", "naver-iteration", 1),
    *(
        ("naver_hf_compute_lambdas", key, "naver-hf", 1)
        for key in ("lambda=0.005,T=50000", "lambda=0.0005,T=0", "lambda=0.0003,T=3")
    ),
    *(("opensearch_get_lambda", key, "opensearch", 0) for key in ("lambda=0.08,T=40000", "lambda=0.05,T=200")),
    ("tevatron_FlopsScheduler", "target=0.001,T=100", "tevatron", 0),
]


@pytest.mark.parametrize(("source", "key", "convention", "first"), CASES)
def test_schedules_are_their_sources(source: str, key: str, convention: Any, first: int):
    largest, values = shares(source, key)
    steps = int(key.split("T=")[1])
    for number, expected in values.items():
        found = largest * schedule(int(number) - first, steps=steps, convention=convention)
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("key", [key for key in SCHEDULES["sentence_transformers_callback"] if key != "source"])
def test_schedules_are_the_library_s(key: str):
    largest, values = shares("sentence_transformers_callback", key)
    shape: Any = key.split(",")[0]
    total = int(key.split("total=")[1].split(",")[0])
    options = LOSSES["flops"].options(name="flops", weight=largest, steps=1 / 3)
    steps = options.resolved_steps(total)
    assert steps == SCHEDULES["sentence_transformers_callback"][key]["warmup_steps"]
    for number, expected in values.items():
        step = 0 if number == "at_train_begin" else int(number)
        found = largest * schedule(step, steps=steps, shape=shape, convention="sentence-transformers")
        assert found == pytest.approx(expected, rel=1e-9)


def test_a_fraction_is_a_share_of_the_run_and_a_whole_number_is_steps():
    given = [0.5, 0.999, 1.0, 1, 0, 300]
    found = [LOSSES["flops"].options(name="flops", weight=1, steps=steps).resolved_steps(1000) for steps in given]
    assert found == [500, 999, 1000, 1, 0, 300]
    for wrong in (-1, -0.5, 1.5, 300.0):
        with pytest.raises(ValueError, match="steps"):
            LOSSES["flops"].options(name="flops", weight=1, steps=wrong)


@pytest.mark.parametrize(
    "convention", ["naver-iteration", "naver-hf", "opensearch", "tevatron", "sentence-transformers"]
)
def test_schedules_grow_to_1_and_stay(convention: Any):
    for shape in ("quadratic", "linear"):
        values = [schedule(step, steps=10, shape=shape, convention=convention) for step in range(15)]
        assert values == sorted(values)
        assert values[0] < 0.2
        assert values[-4:] == [1.0] * 4
    assert {schedule(step, steps=10, shape="constant", convention=convention) for step in range(15)} == {1.0}


# --- rankings ---

QUERIES = [row[0] for row in HF["inputs"]["queries_2x1x5"]]
DOCUMENTS = HF["inputs"]["docs_2x3x5 (column 0 positive)"]
TEACHER = HF["inputs"]["teacher_scores_2x3"]


def batch() -> tuple[DenseBatch, list[Tensor]]:
    """The golden's queries and documents, and the leaves that take gradients: (2, 5) and (2, 3, 5)."""
    queries, documents = torch.tensor(QUERIES).requires_grad_(), torch.tensor(DOCUMENTS).requires_grad_()
    columns = documents.transpose(0, 1).reshape(6, 5)
    own = torch.arange(2)[:, None] + 2 * torch.arange(3)[None, :]
    side = {"labels": torch.tensor([[1.0, 0, 0]] * 2), "cat": torch.tensor(TEACHER)}
    return DenseBatch(queries, columns, own, side), [queries, documents]


def value(terms: list[dict[str, Any]], given: DenseBatch) -> Tensor:
    """The weighted sum of terms, as a training has it."""
    context = LossContext(torch.nn.Linear(1, 1))
    total = torch.zeros(())
    for term in terms:
        entry = LOSSES[term["name"]]
        more = {"similarity": "dot"} if "similarity" in entry.options.model_fields else {}
        more |= {"teacher": "cat"} if "teacher" in entry.options.model_fields else {}
        options = entry.options.model_validate({**more, **term})
        total = total + options.weight * DENSE_TERMS[term["name"]](options, context)(given).mean()
    return total


CONTRASTIVE = {"name": "infonce", "against": "negatives"}
ALL_PAIRS = {"name": "margin-mse", "pairs": "all"}
FULL = {"weight": 0.005, "steps": 0, "convention": "naver-hf"}
SPARSE = [
    {"name": "flops", **FULL},
    {"name": "l1", "side": "query", **FULL},
    {"name": "anti-collapse"},
]
OBJECTIVES: dict[str, list[dict[str, Any]]] = {
    "contrastive": [CONTRASTIVE, *SPARSE],
    "kldiv": [{"name": "kl"}, *SPARSE],
    "mse_margin": [ALL_PAIRS, *SPARSE],
    "kldiv_contrastive_with_weights": [{"name": "kl", "weight": 0.99}, {**CONTRASTIVE, "weight": 0.01}, *SPARSE],
    "kldiv_mse_margin_with_weights": [{"name": "kl", "weight": 0.99}, {**ALL_PAIRS, "weight": 0.05}, *SPARSE],
    "kldiv_contrastive_without_weights": [{"name": "kl"}, CONTRASTIVE, *SPARSE],
    "kldiv_mse_margin_with_weights, splade_doc=True (no query L1)": [
        {"name": "kl", "weight": 0.99}, {**ALL_PAIRS, "weight": 0.05}, SPARSE[0], SPARSE[2],
    ],
    "contrastive, dense=True (no sparsity terms)": [CONTRASTIVE],
}  # fmt: skip


def test_every_objective_of_naver_s_trainer_is_there():
    assert {name for name in HF if name not in ("source", "inputs")} == set(OBJECTIVES)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_objectives_of_naver_s_trainer_are_sums_of_terms(name: str):
    given, (queries, documents) = batch()
    total = value(OBJECTIVES[name], given)
    expected = HF[name]
    close(total.detach(), expected["total"])
    total.backward()
    assert queries.grad is not None
    assert documents.grad is not None
    close(queries.grad, expected["grad_q"])
    close(documents.grad[0], expected["grad_d[0]"])


@pytest.mark.parametrize("name", sorted(name for name in OBJECTIVES if "dense" not in name))
def test_parts_of_naver_s_trainer_s_objectives(name: str):
    given, _ = batch()
    expected = HF[name]
    parts: dict[str, list[dict[str, Any]]] = {
        "contrastive": [CONTRASTIVE],
        "mse_margin": [ALL_PAIRS],
        "kldiv": [{"name": "kl"}],
        "flops_term(after lambda)": [term for term in OBJECTIVES[name] if term["name"] in ("flops", "l1")],
    }
    for part, terms in parts.items():
        if expected[part]:
            close(value(terms, given).detach(), expected[part][0])
    close(anti_collapse(given.queries, given.documents).detach(), expected["anti_zero_term"][0])
    close(active_terms(given.queries).float().mean(), expected["L0_q"][0])
    close(active_terms(given.documents).float().mean(), expected["L0_d"][0])


def test_pairwise_losses_of_naver_are_ours():
    given = {name: torch.tensor(values) for name, values in NAVER["inputs"].items()}
    positive, negative = given["pos_score_3x1"], given["neg_score_3x1"]
    lists = torch.cat([positive, negative], dim=1)
    first = torch.zeros(3, dtype=torch.int64)
    close(info_nce(lists, first), NAVER["PairwiseNLL"])
    every = torch.cat([given["in_batch_pos_score_3x3"], negative], dim=1)
    close(info_nce(every, torch.arange(3)), NAVER["InBatchPairwiseNLL"])
    close(rank_net(lists, torch.tensor([[1.0, 0]] * 3)), NAVER["PairwiseBPR"])
    teacher = torch.stack([given["teacher_pos_score_3"], given["teacher_neg_score_3"]], dim=1)
    close(margin_mse(positive, negative, teacher[:, :1], teacher[:, 1:]), NAVER["DistilMarginMSE"])
    close(kl_distillation(lists, teacher), NAVER["DistilKLLoss"])


def test_losses_of_opensearch_are_ours():
    given, _ = batch()
    whole = torch.tensor(OPENSEARCH["inputs"]["teacher_scores_in_batch_2x6"])
    by_query = given.documents.view(3, 2, 5).transpose(0, 1).reshape(6, 5)  # as its columns are
    scores = (given.queries @ by_query.T).detach()
    close(value([{"name": "kl"}], given).detach(), OPENSEARCH["KLDivLoss(temperature=1)"])
    warm = value([{"name": "kl", "temperature": 4}], given).detach() / 16
    close(warm, OPENSEARCH["KLDivLoss(temperature=4) (no T^2 factor)"])
    close(kl_distillation(scores, whole), OPENSEARCH["KLDivLoss(in_batch)"])
    close(value([{"name": "margin-mse"}], given).detach(), OPENSEARCH["MarginMSELoss"])
    # both margins over T is 1 / T² times the loss
    halved = value([{"name": "margin-mse"}], given).detach() / 4
    close(halved, OPENSEARCH["MarginMSELoss(temperature=2)"])
    own = {"name": "infonce", "against": "own"}
    close(value([own], given).detach(), OPENSEARCH["InfoNCELoss(own negatives)"])
    close(value([CONTRASTIVE], given).detach(), OPENSEARCH["InfoNCELoss(in_batch)"])


def test_losses_of_sentence_transformers_are_ours():
    given, _ = batch()
    for temperature in (1.0, 2.0, 4.0):
        found = value([{"name": "kl", "temperature": temperature}], given).detach()
        close(found, LIBRARY[f"SparseDistillKLDivLoss(temperature={temperature})"])
    teacher = torch.tensor(TEACHER)
    scores = (given.queries[:, None] * given.documents[given.own]).sum(dim=2).detach()
    names = [name for name in LIBRARY if name.startswith("SparseMarginMSELoss")]
    close(margin_mse_lists(scores, teacher[:, :1] - teacher[:, 1:]), LIBRARY[names[0]])
    close(margin_mse_lists(scores, teacher), LIBRARY[names[1]])
    close(value([{"name": "margin-mse"}], given).detach(), LIBRARY[names[1]])
    close(value([{"name": "infonce"}], given).detach(), LIBRARY["SparseMultipleNegativesRankingLoss(scale=1)"])
    close(flops(given.documents).detach(), LIBRARY["FlopsLoss over all documents concatenated (as SpladeLoss does)"])
    close(flops(given.queries).detach(), LIBRARY["FlopsLoss over queries"])


# --- terms ---


@pytest.mark.parametrize(
    ("against", "columns"),
    [
        ("batch", [[0, 1, 2, 3, 4, 5]] * 2),
        ("positives-and-own", [[0, 1, 2, 4], [0, 1, 3, 5]]),
        ("negatives", [[0, 2, 3, 4, 5], [1, 2, 3, 4, 5]]),
        ("own", [[0, 2, 4], [1, 3, 5]]),
    ],
)
def test_infonce_goes_over_the_documents_that_are_meant(against: str, columns: list[list[int]]):
    given, _ = batch()
    scores = (given.queries @ given.documents.T).detach()
    wanted = [scores[row, chosen].logsumexp(0) - scores[row, row] for row, chosen in enumerate(columns)]
    found = value([{"name": "infonce", "against": against}], given).detach()
    assert float(found) == pytest.approx(float(torch.stack(wanted).mean()), rel=1e-6)


def test_groupings_of_flops_are_the_published_ones():
    given, _ = batch()
    weight = {"name": "flops", "weight": 1.0, "schedule": "constant"}
    found = {
        name: float(value([{**weight, "grouping": name}], given).detach()) for name in ("all", "by-side", "by-rank")
    }
    documents = given.documents.detach()
    by_rank = [flops(documents[2 * rank : 2 * rank + 2]) for rank in range(3)]
    assert found["all"] == pytest.approx(float(flops(documents)))
    assert found["by-side"] == pytest.approx(float(flops(documents[:2]) + flops(documents[2:])) / 2)
    assert found["by-rank"] == pytest.approx(float(torch.stack(by_rank).sum()))
    assert len({round(number, 6) for number in found.values()}) == 3
    both = value([{**weight, "side": "both"}], given).detach()
    assert float(both) == pytest.approx(found["all"] + float(flops(given.queries.detach())))


def test_a_regulariser_follows_the_clock_and_tells_its_weight():
    context = LossContext(torch.nn.Linear(1, 1))
    options = LOSSES["flops"].options(name="flops", weight=0.5, steps=4)
    term, (given, _) = DENSE_TERMS["flops"](options, context), batch()
    whole = float(flops(given.documents.detach()))
    for step, share in enumerate([1 / 16, 1 / 4, 9 / 16, 1, 1]):
        context.clock.step = step
        assert float(term(given).detach()) == pytest.approx(share * whole)
        told = context.metrics.take()
        assert told["flops-document-lambda"] == pytest.approx(0.5 * share)
        assert told["flops-document"] == pytest.approx(whole)


# --- what is watched ---


@pytest.mark.parametrize("dead", ["query", "document"])
def test_a_side_without_a_term_is_told_at_once_where_the_loss_divides_by_it(dead: str):
    alone, zeros = torch.ones(2, 5), torch.zeros(2, 5)
    columns = [zeros, alone] if dead == "query" else [alone, zeros]
    context = LossContext(torch.nn.Linear(1, 1))
    context.clock.step, context.clock.total = 3, 1000  # between two looks
    options = [LOSSES["infonce"].options(name="infonce", similarity="dot")]
    dividing = [*options, LOSSES["anti-collapse"].options(name="anti-collapse")]

    def loss(chosen: list[Any]) -> InBatchLoss:
        return InBatchLoss(torch.nn.Identity(), chosen, context, watch=ActiveWatch(ActiveLimits(), chosen, context))

    with pytest.raises(BackendError, match=f"step 4: the representations of {dead} have collapsed.*anti-collapse"):
        loss(dividing).from_embeddings(columns, {})
    assert loss(options).from_embeddings(columns, {})["infonce"].isfinite()  # a batch of odd texts may be empty
    one = torch.zeros(2, 5)
    one[1, 2] = 1.0
    columns = [one, alone] if dead == "query" else [alone, one]
    assert loss(dividing).from_embeddings(columns, {})["anti-collapse"].isfinite()
