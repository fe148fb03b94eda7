"""Loss terms as the trainer uses them: over processes, cached, with teachers that have gaps, and learning a toy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from rtk.errors import ConfigError
from rtk.retrieval.losses.batch import CandidateBatch, DenseBatch
from rtk.retrieval.losses.candidate_terms import CANDIDATE_TERMS
from rtk.retrieval.losses.context import LossContext
from rtk.retrieval.losses.contrastive import guide_mask, in_batch_scores, info_nce, info_nce_over
from rtk.retrieval.losses.dense_terms import DENSE_TERMS
from rtk.retrieval.losses.distillation import kl_distillation, margin_mse_lists
from rtk.retrieval.losses.dynamic_contrastive import dynamic_contrastive_loss
from rtk.retrieval.losses.modules import InBatchLoss
from rtk.retrieval.losses.options import LOSSES
from rtk.retrieval.losses.plackett_luce import plackett_luce_distillation

GOLDENS = Path(__file__).parent / "goldens"
GRADCACHE = json.loads((GOLDENS / "infonce_gradcache.json").read_text())["gradcache"]
KALM = json.loads((GOLDENS / "kalm_matryoshka.json").read_text())

TERMS: list[tuple[str, dict[str, Any]]] = [
    ("infonce", {}),
    ("infonce", {"gamma": 0.5}),
    ("infonce", {"gamma": 0.5, "detach_weight": False, "learn_scale": True}),
    ("infonce", {"directions": "symmetric"}),
    ("infonce", {"directions": "joint", "gamma": 0.3}),
    ("infonce", {"directions": "expanded"}),
    ("infonce", {"hardness": 5, "hardness_negatives": "all"}),
    ("infonce", {"mixing": ["pairs", "lists"]}),
    ("infonce", {"against": "positives-and-own"}),
    ("infonce", {"against": "own"}),
    ("infonce", {"guide": "dense"}),
    ("infonce", {"guide": "dense", "guide_margin": 0.05, "directions": "joint"}),
    ("in-batch-margin-mse", {"teacher": "multi_vector"}),
    ("in-batch-lambda", {"teacher": "multi_vector", "k": 7}),  # ties in the first 7 differ from query to query
    ("in-batch-lambda", {"teacher": "multi_vector", "scheme": "ndcg-loss1"}),
    ("in-batch-ensemble-kl", {"teachers": ["multi_vector", "dense", "sparse"]}),
    ("star", {"similarity": "dot"}),
    ("margin-mse", {"teacher": "t"}),
    ("margin-mse", {"teacher": ["t", "u"], "similarity": "dot"}),
    ("margin-mse", {"teacher": "t", "pairs": "all"}),
    ("kl", {"teacher": "t", "temperature": 2.0}),
    ("ensemble-kl", {"teacher": ["t", "u"]}),
    ("pld", {"teacher": "t"}),
    ("dcd", {"teacher": "t", "hardest": 1}),
    ("dcd", {"teacher": "t", "variant": "wsl"}),
    ("listnet", {}),
    ("listwise-softmax", {}),
    ("ranknet", {}),
    ("pairwise-softmax", {}),
    ("lambda", {}),
    ("flops", {"weight": 0.3, "schedule": "constant"}),
    ("flops", {"weight": 0.3, "schedule": "constant", "side": "both", "grouping": "by-side"}),
    ("flops", {"weight": 0.3, "schedule": "constant", "side": "query"}),
    ("flops", {"weight": 0.3, "schedule": "constant", "grouping": "by-rank"}),
    ("l1", {"weight": 0.3, "schedule": "constant", "side": "both"}),
    ("anti-collapse", {}),
]
QUERIES, NEGATIVES, DIM = 4, 2, 6


def whole_batch() -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Columns of vectors and side values of the batch over all processes."""
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randn(QUERIES, DIM, dtype=torch.float64, generator=generator) for _ in range(2 + NEGATIVES)]
    allowed = torch.rand(QUERIES, QUERIES * (1 + NEGATIVES), generator=generator) > 0.3
    teacher = 5 * torch.randn(2, QUERIES, 1 + NEGATIVES, generator=generator)
    teacher[0, 1, 2] = teacher[0, 3] = teacher[1, 0, 1] = float("nan")
    labels = torch.tensor([[2.0, 0, 1], [1, 0, 0], [1, 1, 1], [3, 2, 0]])
    words = ["file", "cell", "wing", "heat", "gene", "risk", "date", "json", "path", "flow", "sort", "list"]
    side = {"t": teacher[0], "u": teacher[1], "labels": labels, "allowed": allowed}
    side |= {"number": torch.full((QUERIES,), 7), "part": torch.zeros(QUERIES, dtype=torch.int64)}
    texts = [words[3 * row : 3 * row + 3] for row in range(QUERIES)]
    texts[3] = ["flow"] * 3
    return columns, {**side, "query_texts": words[:QUERIES], "document_texts": texts}


def with_models(options: dict[str, Any], models: str | Path) -> dict[str, Any]:
    """`guide` and the teachers in the batch are folders of `models`."""

    def folder(value: Any) -> Any:
        return str(Path(models) / value) if value in ("dense", "multi_vector", "sparse") else value

    return {key: list(map(folder, value)) if key == "teachers" else folder(value) for key, value in options.items()}


def module_of(name: str, options: dict[str, Any], models: str | Path) -> InBatchLoss:
    given = with_models(options, models)
    config = SimpleNamespace(seed=3, matryoshka=None)
    context = LossContext(torch.nn.Linear(2, 2), (), config)
    return InBatchLoss(torch.nn.Identity(), [LOSSES[name].options(name=name, **given)], context)


def values_and_gradients(name: str, options: dict[str, Any], models: str | Path, mine: slice) -> tuple[float, Any, Any]:
    """The loss of the slots `mine`, and its gradients on their vectors and on the loss's own parameters."""
    columns, side = whole_batch()
    leaves = [column[mine].clone().requires_grad_() for column in columns]
    loss = module_of(name, options, models).double()
    value = sum(loss.from_embeddings(leaves, {key: value[mine] for key, value in side.items()}).values())
    value.backward()
    own = [parameter.grad.tolist() for parameter in loss.parameters() if parameter.grad is not None]
    zero = torch.zeros_like(leaves[0])
    return value.item(), [(zero if leaf.grad is None else leaf.grad).tolist() for leaf in leaves], own


def run_one_of_two(output: str, models: str) -> None:
    """What each process of the two does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, half = dist.get_rank(), QUERIES // 2
    mine = slice(rank * half, (rank + 1) * half)
    found = [values_and_gradients(name, options, models, mine) for name, options in TERMS]
    Path(f"{output}{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


IDS = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options in TERMS]

_TWO = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("terms", sys.argv[1])
terms = importlib.util.module_from_spec(spec)
spec.loader.exec_module(terms)
terms.run_one_of_two(*sys.argv[2:])
"""


@pytest.fixture(scope="module")
def by_two(run_on_ranks: Callable[..., None], tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> list[Any]:
    """What each of two processes found, term by term."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "two.py"
    script.write_text(_TWO)
    given = [str(Path(__file__).resolve()), str(folder / "rank"), str(tiny_models)]
    run_on_ranks(script, *given)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(IDS)), ids=IDS)
def test_two_processes_make_the_value_and_gradient_of_one(by_two: list[Any], tiny_models: Path, number: int):
    expected = values_and_gradients(*TERMS[number], tiny_models, slice(None))
    ranks = [found[number] for found in by_two]
    # Sparse teachers' scores are sums in float32, whose order a matrix product chooses by its shape.
    loose = 100 if "teachers" in TERMS[number][1] else 1
    assert np.mean([rank[0] for rank in ranks]) == pytest.approx(expected[0], rel=loose * 1e-9)
    # Data-parallel training takes the mean over processes, so each has twice the gradient of its own slots.
    for column, gradient in enumerate(expected[1]):
        halves = np.concatenate([rank[1][column] for rank in ranks]) / 2
        np.testing.assert_allclose(halves, gradient, rtol=loose * 1e-8, atol=1e-8 if loose > 1 else 1e-12)
    for at, gradient in enumerate(expected[2]):
        assert np.mean([rank[2][at] for rank in ranks]) == pytest.approx(gradient, rel=1e-8)


# --- against the pure functions ---


def dense(name: str, **options: Any) -> tuple[torch.Tensor, DenseBatch]:
    columns, side = whole_batch()
    rows = torch.arange(4)
    batch = DenseBatch(columns[0], torch.cat(columns[1:]), rows[:, None] + 4 * torch.arange(3)[None, :], side)
    context = LossContext(torch.nn.Linear(2, 2), (), SimpleNamespace(seed=3))
    return DENSE_TERMS[name](LOSSES[name].options(name=name, **options), context)(batch), batch


PURE = {
    "margin-mse": margin_mse_lists,
    "kl": kl_distillation,
    "pld": plackett_luce_distillation,
    "dcd": dynamic_contrastive_loss,
}


@pytest.mark.parametrize("name", PURE)
def test_teacher_terms_are_their_functions_on_own_documents_and_on_candidates(name: str):
    value, batch = dense(name, teacher="t", similarity="dot", scale=0.7)
    scores = 0.7 * torch.einsum("bd,bkd->bk", batch.queries, batch.documents[batch.own])
    expected = PURE[name](scores, batch.side["t"].double())
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    context = LossContext(torch.nn.Identity())
    term = CANDIDATE_TERMS[name](LOSSES[name].options(name=name, teacher="t"), context)
    found = term(CandidateBatch(scores, batch.side["labels"], batch.side))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert context.metrics.take()[f"{name}-unscored"] == pytest.approx(4 / 12)


def test_infonce_without_additions_is_the_plain_function():
    value, batch = dense("infonce")
    scores = in_batch_scores(batch.queries, batch.documents, similarity="cosine", scale=20)
    assert value.item() == pytest.approx(info_nce(scores, batch.own[:, 0], batch.side["allowed"]).item(), rel=1e-9)


PENALTY = {"weight": 1.0, "side": "both", "schedule": "constant"}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("infonce", {}),
        ("star", {}),
        ("margin-mse", {"teacher": "t"}),
        ("margin-mse", {"teacher": "t", "pairs": "all"}),
        ("kl", {"teacher": "t"}),
        ("ensemble-kl", {"teacher": ("t",)}),
        ("lambda", {}),
        ("flops", PENALTY),
        ("flops", {**PENALTY, "grouping": "by-rank"}),
        ("l1", PENALTY),
        ("anti-collapse", {}),
    ],
)
def test_half_precision_vectors_under_autocast_lose_nothing_more(name: str, given: dict[str, Any]):
    columns, side = whole_batch()
    rounded = [column.bfloat16() for column in columns]
    loss = InBatchLoss(torch.nn.Identity(), [LOSSES[name].options(name=name, **given)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss.from_embeddings(rounded, side)[name]
    assert found.dtype == torch.float32
    expected = loss.from_embeddings([column.double() for column in rounded], side)[name]
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def over_first_dimensions(columns: list[torch.Tensor], golden: dict, scale: float, side: dict) -> torch.Tensor:
    """InfoNCE under the golden's dimensions; every value has its own name."""
    pairs = list(zip(golden["dims"], golden["weights"], strict=True))
    options = LOSSES["infonce"].options(name="infonce", scale=scale)
    values = InBatchLoss(torch.nn.Identity(), [options], matryoshka=pairs).from_embeddings(columns, side)
    assert len(values) == len(pairs)
    return sum(values.values())


def test_matryoshka_equals_sentence_transformers():
    golden = json.loads((GOLDENS / "st_losses.json").read_text())["matryoshka"]
    columns = [torch.tensor(column, dtype=torch.float64, requires_grad=True) for column in golden["embeddings"]]
    loss = over_first_dimensions(columns, golden, golden["scale"], {})
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-7)
    for column, expected in zip(columns, golden["grads"], strict=True):
        torch.testing.assert_close(column.grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("case", KALM["cases"], ids=lambda case: f"in-batch-{case['use_inbatch_neg']}")
def test_matryoshka_as_published_by_kalm(case: dict):
    queries, passages = (
        torch.tensor(KALM[name], dtype=torch.float64, requires_grad=True)
        for name in ("q_reps", "p_reps_grouped_pos_first")
    )
    size, group = len(queries), len(passages) // len(queries)
    own = torch.arange(size * group)[None, :] % size == torch.arange(size)[:, None]  # all positives, then all first …
    columns = [queries, *passages.view(size, group, -1).unbind(1)]
    golden = {"dims": KALM["matryoshka_dims"], "weights": KALM["matryoshka_weights"]}
    side = {"allowed": torch.ones_like(own) if case["use_inbatch_neg"] else own}
    loss = over_first_dimensions(columns, golden, 1 / KALM["temperature"], side)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    torch.testing.assert_close(queries.grad, torch.tensor(case["grad_q"], dtype=torch.float64), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(passages.grad, torch.tensor(case["grad_p"], dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_two_terms_of_one_name_both_count_over_first_dimensions():
    columns, side = whole_batch()
    options = [LOSSES["infonce"].options(name="infonce", scale=scale) for scale in (20, 1)]
    dims = [(6, 1.0), (3, 0.5)]
    both = InBatchLoss(torch.nn.Identity(), options, matryoshka=dims).from_embeddings(columns, side)
    alone = [
        InBatchLoss(torch.nn.Identity(), [item], matryoshka=dims).from_embeddings(columns, side) for item in options
    ]
    assert len(both) == 4
    assert sum(both.values()).item() == pytest.approx(sum(sum(each.values()).item() for each in alone))


def test_symmetric_masks_hold_in_both_directions():
    value, batch = dense("infonce", directions="symmetric")
    allowed = batch.side["allowed"]
    forward = in_batch_scores(batch.queries, batch.documents, similarity="cosine", scale=20)
    positive, eye = forward[:, :4].diagonal(), torch.eye(4, 12, dtype=torch.bool)
    backward = forward[:, :4].T.masked_fill(~(allowed[:, :4].T | eye[:, :4]), -torch.inf)
    pools = [forward.masked_fill(~(allowed | eye), -torch.inf), backward]
    assert value.item() == pytest.approx(info_nce_over(positive, pools, joint=False).item(), rel=1e-9)


def test_mixing_adds_negatives_and_is_the_same_for_the_same_batch():
    plain, first, again = (dense("infonce", **given)[0] for given in ({}, {"mixing": "pairs"}, {"mixing": "pairs"}))
    both, _ = dense("infonce", mixing=["pairs", "lists"])
    assert first.item() == again.item()
    assert plain < first < both


@pytest.mark.parametrize("kind", ["pairs", "lists"])
def test_what_is_no_negative_is_in_no_mixture(kind: str):
    """The first of two negatives is a copy of the positive by text: there is nothing left to mix."""
    columns, side = whole_batch()
    rows = torch.arange(4)
    own = rows[:, None] + 4 * torch.arange(3)[None, :]
    allowed = torch.ones(4, 12, dtype=torch.bool).scatter(1, own[:, 1:2], False)
    batch = DenseBatch(columns[0], torch.cat(columns[1:]), own, {**side, "allowed": allowed})
    found = [
        DENSE_TERMS["infonce"](
            LOSSES["infonce"].options(name="infonce", mixing=mixing), LossContext(torch.nn.Identity())
        )(batch)
        for mixing in ((), (kind,))
    ]
    assert found[0].item() == found[1].item()


def test_mixing_of_one_negative_is_refused():
    columns, side = whole_batch()
    rows = torch.arange(4)
    batch = DenseBatch(columns[0], torch.cat(columns[1:3]), rows[:, None] + 4 * torch.arange(2)[None, :], side)
    term = DENSE_TERMS["infonce"](
        LOSSES["infonce"].options(name="infonce", mixing="lists", mask_false_negatives=False),
        LossContext(torch.nn.Identity()),
    )
    with pytest.raises(ConfigError, match=r"at least two negatives .* there is 1; set sampling\.negatives"):
        term(batch)


def test_mixing_wants_cosine():
    with pytest.raises(ValueError, match="similarity: cosine only"):
        LOSSES["infonce"].options(name="infonce", mixing="pairs", similarity="dot")


def test_the_guide_decides_which_negatives_count(tiny_models: Path):
    from sentence_transformers import SentenceTransformer

    path = str(tiny_models / "dense")
    value, batch = dense("infonce", guide=path, mask_false_negatives=False)
    guide = SentenceTransformer(path, device="cpu")
    texts = batch.side["document_texts"]
    documents = [text for column in range(3) for text in (row[column] for row in texts)]
    given = guide.similarity(guide.encode(batch.side["query_texts"]), guide.encode(documents))
    mask = guide_mask(given, given.diagonal())
    assert 0.1 < mask.float().mean() < 0.9  # it does decide something
    scores = in_batch_scores(batch.queries, batch.documents, similarity="cosine", scale=20)
    assert value.item() == pytest.approx(info_nce(scores, batch.own[:, 0], mask).item(), rel=1e-6)


def test_the_guide_reads_a_batch_once_however_many_truncations_ask(tiny_models: Path, monkeypatch: pytest.MonkeyPatch):
    from rtk.retrieval.losses import contrastive_terms

    calls: list[int] = []
    original = contrastive_terms._guide_vectors
    monkeypatch.setattr(contrastive_terms, "_guide_vectors", lambda *given: calls.append(1) or original(*given))
    columns, side = whole_batch()
    options = LOSSES["infonce"].options(name="infonce", guide=str(tiny_models / "dense"))
    loss = InBatchLoss(
        torch.nn.Identity(), [options], LossContext(torch.nn.Linear(1, 1)), matryoshka=[(6, 1.0), (3, 1.0)]
    )
    first = loss.from_embeddings(columns, side)
    assert len(calls) == 1
    other = {**side, "query_texts": side["query_texts"][::-1]}
    assert loss.from_embeddings(columns, other)["infonce@6"] != first["infonce@6"]
    assert len(calls) == 2


def test_a_guide_is_neither_trained_nor_saved(tiny_models: Path):
    loss = module_of("infonce", {"guide": "dense"}, tiny_models)
    assert not list(loss.parameters())
    assert not loss.state_dict()


def test_margin_mse_learns_the_scale_of_cosines_and_leaves_dot_products_alone():
    kind = LOSSES["margin-mse"].options
    assert kind(name="margin-mse").learn_scale
    assert not kind(name="margin-mse", similarity="dot").learn_scale
    assert not kind(name="margin-mse", learn_scale=False).learn_scale


def test_each_term_that_learns_a_scale_has_its_own_and_tells_it():
    columns, side = whole_batch()
    options = [LOSSES[name].options(name=name, teacher="t") for name in ("margin-mse", "margin-mse", "kl")]
    context = LossContext(torch.nn.Identity())
    loss = InBatchLoss(torch.nn.Identity(), options, context)
    scales = list(loss.parameters())
    assert len(scales) == 2
    scales[1].data += 1
    loss.from_embeddings(columns, side)
    told = context.metrics.take()
    assert told["margin-mse-scale"] == pytest.approx(20)
    assert told["margin-mse-1-scale"] == pytest.approx(20 * 2.718281828, rel=1e-5)
    assert "kl-scale" not in told


def test_a_teacher_that_is_not_there_is_named():
    table = SimpleNamespace(name="toy", scores={"labels": np.zeros(1), "bert": np.zeros(1)})
    options = LOSSES["kl"].options(name="kl", teacher="colbert")
    with pytest.raises(ConfigError, match="no scores of 'colbert'; it has those of 'bert'"):
        CANDIDATE_TERMS["kl"](options, LossContext(torch.nn.Identity(), [table]))
    with pytest.raises(ConfigError, match="must be named"):
        CANDIDATE_TERMS["kl"](LOSSES["kl"].options(name="kl"), LossContext(torch.nn.Identity()))
    bare = SimpleNamespace(name="toy", scores={})
    with pytest.raises(ConfigError, match="no scores of any teacher"):
        CANDIDATE_TERMS["kl"](LOSSES["kl"].options(name="kl"), LossContext(torch.nn.Identity(), [bare]))


# --- GradCache ---


class _Golden(torch.nn.Module):
    """The encoder of the published steps: tanh(x W), then dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(
            torch.nn.Parameter(torch.tensor(GRADCACHE[name], dtype=torch.float64)) for name in ("Wq", "Wd")
        )
        self.dropout = dropout
        self.device = torch.device("cpu")

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        weights = self.weights[int(features["side"][0])]
        return {"sentence_embedding": torch.nn.functional.dropout(torch.tanh(features["x"] @ weights), self.dropout)}


@pytest.mark.parametrize(
    "step", GRADCACHE["steps"], ids=lambda s: f"{s['chunk_sizes']}-{s['dropout']}-{s['n_hard_negatives']}"
)
def test_our_cached_and_plain_steps_are_those_of_gradcache(step: dict):
    model = _Golden(step["dropout"])
    options = LOSSES["infonce"].options(name="infonce", similarity="dot", mask_false_negatives=False)
    size = step["chunk_sizes"]
    size = size[0] if isinstance(size, list) else size  # one size for both sides is what we offer
    loss = InBatchLoss(model, [options], mini_batch_size=size)
    if step["n_hard_negatives"]:
        both = torch.tensor(GRADCACHE["xd_two_per_query"], dtype=torch.float64)
        documents = [both[0::2], both[1::2]]
    else:
        documents = [torch.tensor(GRADCACHE["xd"], dtype=torch.float64)]
    columns = [torch.tensor(GRADCACHE["xq"], dtype=torch.float64), *documents]
    features = [{"x": x, "side": torch.full((len(x),), float(at > 0))} for at, x in enumerate(columns)]
    torch.manual_seed(0)
    value = loss(features, {})
    value = value if isinstance(value, torch.Tensor) else value["infonce"]
    value.backward()
    assert value.item() == pytest.approx(step["loss"], rel=1e-9)
    for weights, name in zip(model.weights, ("grad_Wq", "grad_Wd"), strict=True):
        torch.testing.assert_close(weights.grad, torch.tensor(step[name], dtype=torch.float64), rtol=1e-9, atol=1e-12)


PENALTIES = ("flops", "l1", "anti-collapse")  # never alone: caching wants a loss that sees every column


@pytest.mark.parametrize("number", [at for at, (name, _) in enumerate(TERMS) if name not in PENALTIES])
def test_cached_equals_uncached(number: int, tiny_models: Path, tiny_dense: Any):
    name, options = TERMS[number]
    given = with_models(options, tiny_models)
    _, side = whole_batch()
    texts = side["document_texts"]
    columns = [side["query_texts"], *([row[at] for row in texts] for at in range(3))]
    found: list[Any] = []
    for size in (None, 3):
        tiny_dense.eval()
        tiny_dense.zero_grad()
        context = LossContext(tiny_dense, (), SimpleNamespace(seed=3))
        loss = InBatchLoss(tiny_dense, [LOSSES[name].options(name=name, **given)], context, mini_batch_size=size)
        value = loss([tiny_dense.preprocess(column) for column in columns], side)
        value = value if isinstance(value, torch.Tensor) else value[name]
        value.backward()
        parameters = [p for p in (*tiny_dense.parameters(), *loss.parameters()) if p.grad is not None]
        found.append((value.item(), [p.grad.clone() for p in parameters]))
    (plain, cached) = found
    assert cached[0] == pytest.approx(plain[0], rel=1e-5)
    for ours, theirs in zip(cached[1], plain[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * max(1.0, float(theirs.abs().max())))
