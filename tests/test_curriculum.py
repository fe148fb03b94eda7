"""Curricula: the published heuristics and weights, what is repaired in them, and training by them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rtk.errors import ConfigError
from rtk.eval.files import read_run, write_run
from rtk.eval.run import Run
from rtk.ids import Ids
from rtk.retrieval.sampling.curriculum import Schedule, curriculum_weights, easiness, kde_cdf, score_easiness

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "curriculum_weights.json").read_text(encoding="utf-8"))
RUN = Run.from_lists((qid, list(scores), list(scores.values())) for qid, scores in GOLDEN["run"].items())
FOUND = [row for row in GOLDEN["heuristics"] if row["did"] != "not in run"]


def of(rows: list[dict[str, Any]], difficulty: Any) -> np.ndarray:
    return easiness(RUN, Ids([row["qid"] for row in rows]), Ids([row["did"] for row in rows]), difficulty)


def test_heuristics_are_the_published_ones():
    np.testing.assert_allclose(of(FOUND, "reciprocal-rank"), [1 / row["rank"] for row in FOUND], rtol=1e-6)
    np.testing.assert_allclose(of(FOUND, "normalised-score"), [row["normscore"] for row in FOUND], rtol=1e-6)
    np.testing.assert_allclose(of(FOUND, "kde"), [row["kdescore"] for row in FOUND], rtol=1e-6)


def test_scores_beyond_the_list_are_held_within_bounds_and_the_density_goes_on():
    """The published normalised score is 1.81 and -0.35 there."""
    beyond = [row for row in GOLDEN["heuristics"] if row["did"] == "not in run"]
    among = np.array(list(GOLDEN["run"]["q1"].values()))
    scores = np.array([row["score"] for row in beyond])
    np.testing.assert_allclose(score_easiness(scores, among), [1.0, 0.0])
    np.testing.assert_allclose(kde_cdf(scores, among), [row["kdescore"] for row in beyond], rtol=1e-6)


def test_a_document_that_was_not_found_is_hard_and_equal_scores_say_nothing():
    rows = [{"qid": "q1", "did": "elsewhere"}, {"qid": "no such query", "did": "d1"}]
    assert of(rows, "reciprocal-rank").tolist() == pytest.approx([0.001, 0.001])
    assert of(rows, "kde").tolist() == of(rows, "normalised-score").tolist() == [0, 0]
    equal = np.full(3, 7.5)
    assert score_easiness(equal, equal).tolist() == kde_cdf(equal, equal).tolist() == [0.5] * 3
    assert kde_cdf(equal[:1], equal[:1]).tolist() == [0.5]


def values_of(case: dict[str, Any], key: str) -> np.ndarray:
    """Ranks go in as reciprocals."""
    values = np.array(case[key], dtype=np.float64)
    return 1 / values if case["curriculum"] == "reciprank" else values


@pytest.mark.parametrize("case", GOLDEN["pairwise"] + GOLDEN["pairwise_single_pair_batches"])
def test_pairwise_weights_are_the_published_ones(case):
    easy = values_of(case, "heuristic_values_pos_then_negs").reshape(-1, 1 + case["num_neg"])
    schedule = Schedule(end=case["eoc_epoch"], anti=case["anti"])
    weights = curriculum_weights(easy, easy, "pairwise", case["epoch"], schedule)
    assert weights.mean() == pytest.approx(case["mean_weight"], abs=2e-7)
    scores = np.array(case["scores_pos_then_negs"]).reshape(easy.shape)
    if case["loss_fn"] == "softmax":
        costs = 1 - 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
    else:
        costs = np.maximum(0, scores[:, 1] - scores[:, 0])  # the published hinge has no margin
    assert costs.mean() == pytest.approx(case["unweighted_loss"], rel=1e-6)
    assert costs.mean() * weights.mean() == pytest.approx(case["loss"], rel=1e-6), "batch_mean_product"
    if len(costs) == 1:
        assert (costs * weights).mean() == pytest.approx(case["loss"], rel=1e-6), "one query: the same by sample"


@pytest.mark.parametrize("case", GOLDEN["pointwise"])
def test_pointwise_weights_are_the_published_ones(case):
    easy, labels = values_of(case, "heuristic_values")[None], np.array(case["relscores"])[None]
    weights = curriculum_weights(easy, labels, "pointwise", case["epoch"], Schedule())
    costs = (np.array(case["scores"])[None] - labels) ** 2
    assert costs.mean() * weights.mean() == pytest.approx(case["loss"], rel=1e-6)


easy_lists = st.lists(st.floats(0, 1), min_size=4, max_size=4)


@given(easy_lists, st.integers(1, 30), st.sampled_from(["pairwise", "pointwise"]))
def test_weights_rise_to_one_with_the_epochs(values, end, weighting):
    easy = np.array(values).reshape(2, 2)
    labels = np.array([[1, 0], [1, 0]])
    by_epoch = np.stack([curriculum_weights(easy, labels, weighting, i, Schedule(end)) for i in range(end + 2)])
    assert (np.diff(by_epoch, axis=0) >= -1e-7).all()
    assert (by_epoch[end:] == 1).all()
    never = curriculum_weights(easy, labels, weighting, 99, Schedule(end=0))
    np.testing.assert_array_equal(never, by_epoch[0])


@given(easy_lists)
def test_exchanging_positive_and_negative_and_the_anti_curriculum_turn_the_weight_around(values):
    easy = np.array(values).reshape(2, 2)
    weights = curriculum_weights(easy, easy, "pairwise", 0)
    np.testing.assert_allclose(curriculum_weights(easy[:, ::-1], easy, "pairwise", 0), 1 - weights, atol=3e-8)
    anti = curriculum_weights(easy, easy, "pairwise", 0, Schedule(anti=True))
    np.testing.assert_allclose(anti, 1 - weights, atol=3e-8)


def test_the_hardest_of_several_negatives_decides():
    easy = np.array([[0.5, 0.1, 0.9, 0.3]])
    assert curriculum_weights(easy, easy, "pairwise", 0)[0] == pytest.approx(0.3)


def test_an_epoch_is_a_number_of_batches():
    schedule = Schedule(batches_per_epoch=32)
    assert [schedule.epoch(number) for number in (0, 31, 32, 640)] == [0, 0, 1, 20]


# --- training ---


def lists(of: dict[str, list[str]]) -> Run:
    return Run.from_lists((qid, docs, [float(-place) for place in range(len(docs))]) for qid, docs in of.items())


@pytest.fixture
def config(beir_folder, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))
    words = ["file", "cell", "wing", "heat", "vitamin", "cancer", "json", "date", "path", "flow", "gene", "list"]
    corpus = [{"_id": f"d{n}", "title": "", "text": words[n]} for n in range(12)]
    queries = [{"_id": f"q{n}", "text": words[-n]} for n in range(8)]
    folder = beir_folder(corpus=corpus, queries=queries, qrels={"train": [(f"q{n}", f"d{n}", 1) for n in range(8)]})
    orders = {f"q{n}": [f"d{(n * 5 + step) % 12}" for step in range(12)] for n in range(8)}
    write_run(lists(orders), tmp_path / "negatives.run")
    write_run(lists({qid: docs[:9] for qid, docs in orders.items()}), tmp_path / "bm25.run")
    runs = {"negatives": str(tmp_path / "negatives.run"), "first_stage": str(tmp_path / "bm25.run")}
    return {
        "method": "cross-encoder",
        "model": str(tiny_models / "cross_encoder"),
        "data": {"collection": str(folder), "runs": runs},
        "sampling": {"negatives": 2},
        "loss": ["pairwise-softmax"],
        "curriculum": {"difficulty": "reciprocal-rank", "end": 2, "batches_per_epoch": 2},
        "trainer": {
            "per_device_train_batch_size": 4, "learning_rate": 1e-3, "max_steps": 6, "save_steps": 3,
            "logging_steps": 1, "use_cpu": True,
        },
        "output": str(tmp_path / "model"),
    }  # fmt: skip


def load(config: dict[str, Any], *overrides: str) -> Any:
    from rtk.retrieval.training.config import load_config

    return load_config(config, overrides)


def train(config: dict[str, Any], *overrides: str) -> Path:
    from rtk.retrieval.training.trainer import train as run

    return run(load(config, *overrides))


def trainer_of(config: dict[str, Any], *overrides: str) -> Any:
    from rtk.retrieval.training.kinds import EXAMPLES
    from rtk.retrieval.training.trainer import _arguments, _make_trainer

    loaded = load(config, *overrides)
    tables = EXAMPLES[loaded.preset.examples or loaded.preset.family].open(loaded)
    return _make_trainer(loaded, _arguments(loaded, resuming=False), tables, None)


def test_the_batch_carries_each_documents_difficulty(config):
    trainer = trainer_of(config)
    run = read_run(config["data"]["runs"]["first_stage"])
    (table,) = trainer._examples.tables
    for number, batch in zip(range(2), trainer.get_train_dataloader(), strict=False):
        draw = trainer._examples.sampler.draw(number)
        for slot, qid in enumerate(table.qids(draw.rows)):
            names = table.documents.ids.take(draw.documents[slot])
            found = run[qid].documents
            expected = [1 / (found.index(name) + 1) if name in found else 0.001 for name in names]
            assert batch["label"]["difficulty"][slot].tolist() == pytest.approx(expected)


MAKERS = {
    "pairwise-softmax": ("cross-encoder", {}),
    "binary-cross-entropy": ("cross-encoder", {}),
    "ranknet": ("cross-encoder", {}),
    "listwise-softmax": ("contrastive", {}),
    "infonce": ("contrastive", {"gamma": 0.5}),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("reduction", ["per_sample", "batch_mean_product"])
def test_each_querys_cost_is_multiplied_by_its_weight(config, tiny_models, name, reduction):
    """Weights of 1 give the plain loss; the costs of queries average to it; the value is the sum of products."""
    method, options = MAKERS[name]
    model = "cross_encoder" if method == "cross-encoder" else "dense"
    config |= {"method": method, "model": str(tiny_models / model), "loss": [{"name": name, **options}]}
    config["curriculum"]["reduction"] = reduction
    trainer = trainer_of(config)
    trainer.loss.eval()
    inputs = next(iter(trainer.get_train_dataloader()))
    features, side = trainer.collect_features(dict(inputs))
    value = trainer.loss(features, side)[name].item()
    weights = trainer.loss.weights.of(side)
    assert weights.tolist() != [1.0] * 4
    trainer.loss.weights = None
    plain = trainer.loss(features, side)[name].item()
    caught: list[torch.Tensor] = []

    class Caught:
        def value(self, term: Any, batch: Any) -> torch.Tensor:
            caught.append(term.by_query(batch))
            return caught[0].mean()

    trainer.loss.weights = Caught()
    assert trainer.loss(features, side)[name].item() == pytest.approx(plain, rel=1e-5)
    costs = caught[0]
    expected = (costs * weights).mean() if reduction == "per_sample" else costs.mean() * weights.mean()
    assert value == pytest.approx(expected.item(), rel=1e-5)


def test_pointwise_weights_multiply_documents(config):
    config |= {"loss": ["binary-cross-entropy"]}
    trainer = trainer_of(config, "curriculum.weighting=pointwise", "curriculum.difficulty=kde")
    trainer.loss.eval()
    features, side = trainer.collect_features(dict(next(iter(trainer.get_train_dataloader()))))
    value = trainer.loss(features, side)["binary-cross-entropy"].item()
    from rtk.retrieval.losses.modules import candidate_scores

    scores = candidate_scores(trainer.model, features).detach()
    costs = torch.nn.functional.softplus(torch.where(side["labels"] > 0, -scores, scores))
    easy = side["difficulty"]
    weights = torch.where(side["labels"] > 0, easy, 1 - easy) + 1e-8
    assert value == pytest.approx((costs * weights).mean().item(), rel=1e-5)


def test_the_weight_fades_by_the_batchs_number_also_after_a_resume(config, interrupted):
    from safetensors.torch import load_file

    whole = train({**config, "output": config["output"] + "-whole"})
    interrupted(config, 4)
    halves = train(config)
    ends = [load_file(output / "model.safetensors") for output in (whole, halves)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    state = json.loads((whole / "checkpoints" / "checkpoint-6" / "trainer_state.json").read_text())
    told = [entry["curriculum-weight"] for entry in state["log_history"] if "curriculum-weight" in entry]
    assert len(told) == 6
    assert max(told[:2]) < 1
    assert told[4:] == [1.0, 1.0], "the third epoch of two batches"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss": ["cet"], "method": "cet"}, "'cet' stands alone"),
        ({"loss": ["lambda"]}, "'lambda' has no cost of its own for each query.*batch_mean_product"),
        ({"curriculum": {"weighting": "pointwise"}}, "for each document.*take one of binary-cross-entropy"),
        ({"curriculum": {"difficulty": "bm25"}}, "reciprocal-rank"),
    ],
)
def test_what_a_curriculum_cannot_weigh_is_refused(config, change, said):
    with pytest.raises(ConfigError) as caught:
        load({**config, **change})
    assert re.search(said, str(caught.value) + " ".join(caught.value.problems), re.DOTALL)


def test_a_curriculum_needs_a_first_stage(config):
    config["data"]["runs"].pop("first_stage")
    with pytest.raises(ConfigError, match=r"data\.runs\.first_stage"):
        load(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reduction", "method", "name", "loss"),
    [
        ("per_sample", "contrastive", "dense", "infonce"),
        ("batch_mean_product", "cross-encoder", "cross_encoder", "lambda"),
    ],
)
def test_two_processes_end_at_the_weights_of_one(
    train_on_ranks: Callable[..., list[Path]],
    without_dropout: Callable[[str | Path], Path],
    config: dict[str, Any],
    tiny_models: Path,
    reduction: str,
    method: str,
    name: str,
    loss: str,
):
    from safetensors.torch import load_file

    config |= {"method": method, "model": str(without_dropout(tiny_models / name)), "loss": [loss]}
    config["curriculum"]["reduction"] = reduction
    outputs = train_on_ranks(config, 4, learning_rate=0.05, max_steps=3)
    one, two = (load_file(output / "model.safetensors") for output in outputs)
    before = load_file(tiny_models / name / "model.safetensors")
    assert any(not torch.equal(value, before[key]) for key, value in one.items() if key in before)
    for key, value in two.items():
        torch.testing.assert_close(value, one[key], rtol=1e-4, atol=1e-6)
