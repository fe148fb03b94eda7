"""The whole objective of inference-free training, against the authors' program; and its two equal forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from sentence_transformers.sparse_encoder.modules import SpladePooling  # noqa: E402

from rtk.errors import ConfigError  # noqa: E402
from rtk.retrieval.losses.context import LossContext  # noqa: E402
from rtk.retrieval.losses.idf_flops import idf_penalties, make_idf_flops  # noqa: E402
from rtk.retrieval.losses.modules import InBatchLoss  # noqa: E402
from rtk.retrieval.losses.options import LOSSES  # noqa: E402
from rtk.retrieval.losses.regularisation import flops  # noqa: E402

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "sparse" / "inference_free_objective.json").read_text())
INPUTS = GOLDEN["inputs"]
CASES = [name for name in GOLDEN if name not in ("source", "inputs")]
QUERIES, CANDIDATES = 2, 3


def options(name, **values):
    return LOSSES[name].options(name=name, **values)


def encode(logits, mask):
    return SpladePooling("max").train()({"token_embeddings": logits, "attention_mask": mask})["sentence_embedding"]


def close(found, expected):
    torch.testing.assert_close(found.detach(), torch.tensor(expected), rtol=1e-5, atol=1e-7)


def query_vectors(idf):
    ids, mask = torch.tensor(INPUTS["query_input_ids"]), torch.tensor(INPUTS["query_attention_mask"])
    weights = torch.tensor(idf)
    weights[torch.tensor(INPUTS["special_token_ids"])] = 0
    return torch.zeros(len(ids), len(idf)).scatter_(1, ids, mask.float()) * weights.relu()


def value(queries, documents, terms, *, share=1.0, model=None):
    """The terms over query-major rows of documents, at a step where the regularisers have `share` of λ."""
    context = LossContext(model or torch.nn.Identity())
    context.clock.step = round(share**0.5 * 1000) - 1  # of T = 1000, as OpenSearch counts
    columns = [documents[place::CANDIDATES] for place in range(CANDIDATES)]
    side = {"t": torch.tensor(INPUTS["teacher_scores_2x3"]), "labels": torch.zeros(QUERIES, CANDIDATES)}
    return InBatchLoss(context.model, terms, context).from_embeddings([queries, *columns], side)


def penalty(name, weight, **values):
    settings = {"weight": weight, "steps": 1000, "convention": "opensearch", **values}
    return options(name, **settings)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_of_the_authors_step(name):
    golden = GOLDEN[name]
    logits = torch.tensor(INPUTS["doc_logits_6x3x8"], requires_grad=True)
    documents = encode(logits * 1.0, torch.tensor(INPUTS["doc_attention_mask"]))
    close(documents, golden["d_rep"])
    terms = [options("kl", teacher="t", similarity="dot"), penalty("flops", 0.08, grouping="by-rank")]
    if name.startswith("siamese"):
        queries = encode(logits[:QUERIES] * 1.0, torch.ones(QUERIES, logits.shape[1]))  # by the same network
        terms.append(penalty("flops", 0.05, side="query"))
    else:
        queries = query_vectors(INPUTS["idf"] if name.startswith("idf") else [1.0] * len(INPUTS["idf"]))
    close(queries, golden["q_rep"])
    found = value(queries, documents, terms, share=golden["lambda_d"] / 0.08)
    total = torch.stack([*found.values()]).sum()
    assert total.item() == pytest.approx(golden["loss"], rel=1e-5)
    assert found["flops"].item() == pytest.approx(golden["lambda_d"] * golden["d_flops"], rel=1e-5)
    total.backward()
    close(logits.grad[0], golden["grad_d_logits[0]"])


@pytest.mark.parametrize("seed", range(5))
def test_idf_in_the_query_equals_idf_in_the_penalty(seed):
    """loss(matching, w) = loss(weighted, idf · w): idf in queries and FLOPS(w), or queries of 0/1 and its own FLOPS."""
    generator = torch.Generator().manual_seed(seed)
    idf = torch.tensor(INPUTS["idf"])
    weights = torch.rand(QUERIES * CANDIDATES, len(idf), generator=generator).mul(3).sub(1).relu()
    presence = (query_vectors([1.0] * len(idf)) > 0).float()
    ranking = options("kl", teacher="t", similarity="dot")
    model = torch.nn.Sequential(table_of(idf))
    matching = value(presence * idf, weights, [ranking, penalty("flops", 0.3, grouping="by-rank")], model=model)
    weighted = value(presence, idf * weights, [ranking, penalty("idf-flops", 0.3, grouping="by-rank")], model=model)
    assert float(matching["kl"]) == pytest.approx(float(weighted["kl"]), rel=1e-5)
    assert float(matching["flops"]) == pytest.approx(float(weighted["idf-flops"]), rel=1e-5)
    other = value(presence, idf * weights, [penalty("idf-flops", 0.3, grouping="by-rank", power=1.0)], model=model)
    assert float(other["idf-flops"]) != pytest.approx(float(weighted["idf-flops"]), rel=1e-2)


def table_of(idf):
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding

    table = SparseStaticEmbedding.__new__(SparseStaticEmbedding)
    torch.nn.Module.__init__(table)
    table.register_buffer("idf", idf)
    return table


def test_another_power_is_another_objective():
    idf, rows = torch.tensor([0.5, 2.0, 4.0]), torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    first, second = (flops(rows, term_weights=idf_penalties(idf, power=power)) for power in (1.0, 2.0))
    assert float(first) == pytest.approx(float((rows.mean(0).square() / idf).sum()), rel=1e-6)
    assert abs(float(first - second)) > 1e-3


def test_frequent_terms_are_penalised_more():
    penalties = idf_penalties(torch.tensor([0.1, 1.0, 10.0]))
    assert penalties.tolist() == pytest.approx([100, 1, 0.01], rel=1e-5)


def test_an_idf_of_zero_cannot_be_penalised():
    with pytest.raises(ConfigError, match="above 0"):
        idf_penalties(torch.tensor([0.0, 1.0]))


def test_without_a_table_there_is_nothing_to_weigh_by(tiny_sparse):
    with pytest.raises(ConfigError, match="no table of idf"):
        make_idf_flops(options("idf-flops", weight=1.0), LossContext(tiny_sparse))
