"""CET: the authors' weights, safe ones, two models that weigh each other, a resume and two processes that change
nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rtk.errors import ConfigError
from rtk.eval.files import write_run
from rtk.eval.run import Run
from rtk.retrieval.losses.cet import (
    Debiasing,
    cet_costs,
    inverse_propensity_weights,
    pair_costs,
    quantiles,
    spearman,
)

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "cet_weights.json").read_text(encoding="utf-8"))


def pairs(interleaved: list[float]) -> torch.Tensor:
    """(n, 2), the positive first."""
    return torch.tensor(interleaved, dtype=torch.float64).view(-1, 2)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"T={case['debias_ratio']}")
def test_weights_losses_and_gradients_are_those_of_the_authors(case):
    relevance = pairs(case["relevance_scores_pos_neg_interleaved"]).requires_grad_()
    selection = pairs(case["selection_scores_pos_neg_interleaved"]).requires_grad_()
    costs = cet_costs((relevance, selection), (relevance, selection), Debiasing(case["debias_ratio"]))
    close = {"rtol": 1e-9, "atol": 0}
    expected = {name: torch.tensor(case[name], dtype=torch.float64) for name in case if isinstance(case[name], list)}
    torch.testing.assert_close(costs.relevance_weights[:, 0], expected["weights_for_relevance_model"], **close)
    torch.testing.assert_close(costs.selection_weights[:, 0], expected["weights_for_selection_model"], **close)
    assert pair_costs(relevance).mean().item() == pytest.approx(case["relevance_loss_unweighted"], rel=1e-9)
    assert costs.relevance.mean().item() == pytest.approx(case["relevance_loss_weighted"], rel=1e-9)
    assert costs.selection.mean().item() == pytest.approx(case["selection_loss_weighted"], rel=1e-9)
    (costs.relevance.mean() + costs.selection.mean()).backward()
    torch.testing.assert_close(relevance.grad.flatten(), expected["relevance_grad"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(selection.grad.flatten(), expected["selection_grad"], rtol=1e-9, atol=1e-12)


def test_a_logit_of_thirty_weighs_millions_unless_it_is_capped():
    """The extreme that the published code allows: no cap, T = 2."""
    logit = torch.tensor([30.0, 0.0, -30.0])
    expected = torch.tensor([1 + math.exp(15), 2.0, 1 + math.exp(-15)])
    torch.testing.assert_close(inverse_propensity_weights(logit, Debiasing(2.0)), expected, rtol=1e-6, atol=0)
    capped = inverse_propensity_weights(logit, Debiasing(2.0, cap=10.0))
    assert capped.tolist() == [10.0, 2.0, pytest.approx(1.0, abs=1e-6)]
    assert inverse_propensity_weights(torch.tensor([1e9, torch.finfo(torch.float32).max])).isfinite().all()
    assert inverse_propensity_weights(torch.tensor([8.0]).half(), Debiasing(0.1)).isfinite().all()


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9), st.floats(0.5, 100))
def test_weights_are_at_least_one_and_grow_with_the_logit(values, temperature):
    logits = torch.tensor(sorted(values), dtype=torch.float64)
    weights = inverse_propensity_weights(logits, Debiasing(temperature))
    reference = [1 / (1 - 1 / (1 + math.exp(-value / temperature))) if value / temperature < 30 else None
                 for value in sorted(values)]  # fmt: skip
    assert (weights >= 1).all()
    assert (weights.diff() >= 0).all()
    for found, wanted in zip(weights.tolist(), reference, strict=True):
        assert wanted is None or found == pytest.approx(wanted, rel=1e-3)


def test_at_a_high_temperature_the_gradient_is_that_of_plain_training():
    scores = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    other = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    costs = cet_costs((scores, other), (scores, other), Debiasing(1e12))
    (found,) = torch.autograd.grad(costs.relevance.mean(), scores, retain_graph=True)
    (plain,) = torch.autograd.grad(pair_costs(scores).mean(), scores)
    torch.testing.assert_close(found, 2 * plain)
    (through,) = torch.autograd.grad(costs.relevance.mean(), other, allow_unused=True)
    assert through is None, "weights are constants"


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=12))
def test_spearman_is_scipys(values):
    from scipy.stats import spearmanr

    left, right = (torch.tensor(side, dtype=torch.float32) for side in zip(*values, strict=True))
    found = spearman(left, right)
    if len(set(left.tolist())) == 1 or len(set(right.tolist())) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(float(spearmanr(left, right).statistic), abs=1e-9)


def test_quantiles_are_numpys():
    values = torch.tensor([[3.0, 1.0], [2.0, 9.0]])
    assert quantiles(values, (0.5, 0.9, 1.0)) == pytest.approx(np.quantile(values.numpy(), (0.5, 0.9, 1.0)))


# --- training two models ---


def lists(of: dict[str, list[str]]) -> Run:
    return Run.from_lists((qid, docs, [float(-place) for place in range(len(docs))]) for qid, docs in of.items())


@pytest.fixture
def config(beir_folder, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Eight queries of a word and twelve documents; the first stage missed d11, which is a negative of q0."""
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))
    words = ["file", "cell", "wing", "heat", "vitamin", "cancer", "json", "date", "path", "flow", "gene", "list"]
    corpus = [{"_id": f"d{n}", "title": "", "text": words[n]} for n in range(12)]
    queries = [{"_id": f"q{n}", "text": words[-n]} for n in range(8)]
    folder = beir_folder(corpus=corpus, queries=queries, qrels={"train": [(f"q{n}", f"d{n}", 1) for n in range(8)]})
    everything = [f"d{n}" for n in range(12)]
    write_run(lists({f"q{n}": everything for n in range(8)}), tmp_path / "negatives.run")
    write_run(lists({f"q{n}": everything[:11] for n in range(8)}), tmp_path / "bm25.run")
    return {
        "method": "cet",
        "model": str(tiny_models / "cross_encoder"),
        "lengths": {"query": None, "document": None},
        "head_dropout": None,
        "data": {
            "collection": str(folder),
            "runs": {"negatives": str(tmp_path / "negatives.run"), "first_stage": str(tmp_path / "bm25.run")},
        },
        "sampling": {"negatives": 2},
        "loss": [{"name": "cet", "temperature": 2.0}],
        "trainer": {
            "per_device_train_batch_size": 4, "learning_rate": 3e-3, "warmup_steps": 0, "max_steps": 6,
            "save_steps": 3, "logging_steps": 1, "use_cpu": True,
        },
        "output": str(tmp_path / "model"),
    }  # fmt: skip


def train(config: dict[str, Any], *overrides: str) -> Path:
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.trainer import train as run

    return run(load_config(config, overrides))


def states(output: Path, step: int) -> dict[str, torch.Tensor]:
    """Relevance and selection model of a checkpoint."""
    from safetensors.torch import load_file

    folder = output / "checkpoints" / f"checkpoint-{step}"
    return {**load_file(folder / "model.safetensors"), **load_file(folder / "loss.safetensors")}


def logged(output: Path, step: int) -> list[dict[str, float]]:
    path = output / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json"
    return [entry for entry in json.loads(path.read_text())["log_history"] if "loss" in entry]


def test_the_preset_has_the_published_settings():
    from rtk.retrieval.training.config import load_config

    given = {"method": "cet", "model": "x", "data": {"collection": "y"}, "output": "z"}
    loaded = load_config(given)
    assert loaded.loss[0].model_dump() == {
        "name": "cet", "weight": 1.0, "temperature": 10.0, "weight_cap": None, "self_normalise": False,
        "selection_model": None, "selection_features": (), "feature_learning_rate": 1e-2,
    }  # fmt: skip
    assert (loaded.trainer["learning_rate"], loaded.trainer["warmup_steps"]) == (3e-6, 10_000)
    assert loaded.head_dropout == 0.2
    with pytest.raises(ConfigError, match="head_dropout: is of a cross-encoder's head"):
        load_config({**given, "method": "contrastive", "head_dropout": 0.1})
    with pytest.raises(ConfigError, match="stands alone"):
        load_config({**given, "loss": ["cet", "listnet"]})
    with pytest.raises(ConfigError, match="needs selection_features"):
        load_config({**given, "loss": [{"name": "cet", "selection_model": "features"}]})
    with pytest.raises(ConfigError, match=r"sampling\.negatives is 0"):
        load_config({**given, "sampling": {"negatives": 0}})


@pytest.mark.parametrize("begins_as", ["the model", "another"])
def test_the_heads_of_both_models_drop_out_as_asked_and_the_rest_as_before(config: dict[str, Any], begins_as: str):
    """The published models drop .2 of the pooled vector; resumed, too, though no file says so."""
    from torch import nn

    from rtk.retrieval.losses.context import LossContext
    from rtk.retrieval.losses.modules import make_loss
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.models import load_model

    if begins_as == "another":
        config["loss"][0]["selection_model"] = config["model"]
    loaded = load_config({**config, "head_dropout": 0.3})
    model = load_model(loaded)
    loss = make_loss("cross-encoder", loaded.loss, LossContext(model, (), loaded))
    for part in (model, loss.selection.encoder):
        rates = {name: module.p for name, module in part.named_modules() if isinstance(module, nn.Dropout)}
        head = {rate for name, rate in rates.items() if ".bert." not in name}
        assert head == {0.3}
        assert {rate for name, rate in rates.items() if ".bert." in name} == {0.1}


def test_both_models_learn_are_logged_and_load(config: dict[str, Any]):
    from sentence_transformers import CrossEncoder

    start = CrossEncoder(config["model"], device="cpu").state_dict()
    output = train(config)
    models = [CrossEncoder(str(folder), device="cpu") for folder in (output, output / "selection")]
    for model in models:
        assert any(not torch.equal(value, start[name]) for name, value in model.state_dict().items())
    pair = [("file", "cell")]
    assert models[0].predict(pair) != models[1].predict(pair), "different weights make different models"
    for entry in logged(output, 6):
        assert entry["loss"] == pytest.approx(entry["cet-relevance"] + entry["cet-selection"], abs=1e-3)
        assert 1 <= entry["cet-relevance-weight-p10"] <= entry["cet-relevance-weight-max"]
        assert -1 <= entry["cet-rank-correlation"] <= 1
    assert logged(output, 6)[0]["cet-rank-correlation"] == 1, "they begin as one model"


def test_the_selection_model_reads_in_the_trainers_precision(config: dict[str, Any]):
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.data import open_tables
    from rtk.retrieval.training.trainer import _arguments, _make_trainer

    loaded = load_config(config, ["trainer.bf16=true", "trainer.max_steps=1", "trainer.save_strategy='no'"])
    trainer = _make_trainer(loaded, _arguments(loaded, resuming=False), open_tables(loaded.data.parts()), None)
    models = {"relevance": trainer.model, "selection": trainer.loss.selection.encoder}
    kinds: dict[str, set[torch.dtype]] = {name: set() for name in models}
    for name, model in models.items():
        layer = next(module for module in model.modules() if isinstance(module, torch.nn.Linear))
        layer.register_forward_hook(lambda module, inputs, output, name=name: kinds[name].add(output.dtype))
    trainer.train()
    assert kinds == {"relevance": {torch.bfloat16}, "selection": {torch.bfloat16}}


def test_weights_are_of_the_other_model_in_evaluation_mode_before_the_step(config: dict[str, Any]):
    """By hand from the models as they start: dropout is off, and each is the other's weight."""
    from sentence_transformers import CrossEncoder

    from rtk.retrieval.losses.context import LossContext
    from rtk.retrieval.losses.coupled import make_cet
    from rtk.retrieval.losses.options import CetOptions

    model = CrossEncoder(config["model"], device="cpu")
    other = CrossEncoder(config["model"], device="cpu")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05)
    context = LossContext(model)
    loss = make_cet(model, CetOptions(name="cet", temperature=2.0), context)
    loss.selection.encoder.load_state_dict(other.state_dict())
    inputs = (["file", "cell"], [["wing", "heat", "json"], ["date", "path", "flow"]])
    pairs_of = [(query, doc) for query, docs in zip(*inputs, strict=True) for doc in docs]
    f, g = (torch.tensor(m.predict(pairs_of, activation_fn=torch.nn.Identity())).view(2, 3) for m in (model, other))
    loss.eval()  # the training pass without dropout, so that the value can be told
    found = loss(inputs, {})
    weights = [1 + (side[:, 1:] / 2).exp() for side in (g, f)]
    for name, side, weight in (("cet-relevance", f, weights[0]), ("cet-selection", g, weights[1])):
        expected = (weight * torch.nn.functional.softplus(side[:, 1:] - side[:, :1])).mean()
        assert found[name].item() == pytest.approx(expected.item(), rel=1e-4)
    loss.train()
    loss(inputs, {})
    told = context.metrics.take()
    assert told["cet-relevance-weight-max"] == pytest.approx(weights[0].max().item(), rel=1e-4), "no dropout in weights"
    assert loss.training
    assert model.training, "and the mode is as it was"
    normalised = make_cet(model, CetOptions(name="cet", temperature=2.0, self_normalise=True), LossContext(model))
    normalised.selection.load_state_dict(loss.selection.state_dict())
    normalised.eval()
    value = normalised(inputs, {})["cet-relevance"]
    assert value.item() == pytest.approx((found["cet-relevance"] / weights[0].mean()).item(), rel=1e-4)


# --- the property ---


def unjudged_above_irrelevant(seed: int, *, biased: bool, debiased: bool) -> float:
    """Share of (relevant document that nobody judged, irrelevant document) pairs in the right order, by linear models.

    Of two features, one makes a document relevant and, with `biased`, the other has it judged. Labelled is what is
    relevant and judged; the relevance model sees both features, the selection model the second.
    """
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(3000, 2, generator=generator)
    relevant = features[:, 0] + 0.5 * torch.randn(3000, generator=generator) > 0.8
    judging = features[:, 1] if biased else torch.randn(3000, generator=generator)
    judged = judging + 0.3 * torch.randn(3000, generator=generator) > 0.5
    positives, negatives = features[relevant & judged], features[~(relevant & judged)]
    relevance, selection = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([relevance, selection], lr=0.05)
    for _ in range(300):
        drawn = [
            pool[torch.randint(len(pool), (64, count), generator=generator)]
            for pool, count in ((positives, 1), (negatives, 4))
        ]
        lists = torch.cat(drawn, dim=1)
        scores = (lists @ relevance, lists[..., 1] * selection)
        if debiased:
            costs = cet_costs(scores, (scores[0].detach(), scores[1].detach()), Debiasing(1.0, cap=10.0))
            loss = costs.relevance.mean() + costs.selection.mean()
        else:
            loss = pair_costs(scores[0]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = (features @ relevance).detach()
    return float((found[relevant & ~judged][:, None] > found[~relevant][None]).float().mean())


def test_relevant_documents_that_nobody_judged_rise_where_judging_was_biased_and_only_there():
    gains = {
        biased: [
            unjudged_above_irrelevant(seed, biased=biased, debiased=True)
            - unjudged_above_irrelevant(seed, biased=biased, debiased=False)
            for seed in range(5)
        ]
        for biased in (True, False)
    }
    assert min(gains[True]) > 0.08  # .12 to .14
    assert max(map(abs, gains[False])) < 0.005  # chance, by which selection tells nothing


@pytest.mark.parametrize("kind", ["models", "features"])
def test_resumed_equals_uninterrupted_bit_for_bit(config: dict[str, Any], kind: str, interrupted: Callable[..., None]):
    if kind == "features":
        config["loss"] = [{"name": "cet", "selection_features": ["rank", "score"]}]
    whole = train({**config, "output": config["output"] + "-whole"})
    interrupted(config, 4)
    halves = train(config)
    expected = states(whole, 6)
    assert any(name.startswith("selection.encoder") for name in expected)
    assert any(name.startswith("selection.head") for name in expected) == (kind == "features")
    for name, value in states(halves, 6).items():
        assert torch.equal(value, expected[name]), name
    before = states(whole, 3)
    changed = [name for name, value in expected.items() if not torch.equal(value, before[name])]
    assert any(name.startswith("selection.") for name in changed)
    assert any(not name.startswith("selection.") for name in changed)


def test_selection_by_features_alone_learns_that_the_pool_is_shallow(config: dict[str, Any]):
    """Positives are what was judged: at the top of the list here. The head finds that out at a rate of its own, and is
    read back."""
    from rtk.retrieval.losses.selection import load_selection

    folder = Path(config["data"]["collection"])
    tops = {f"q{n}": [f"d{n}", *(f"d{m}" for m in range(12) if m != n)] for n in range(8)}
    write_run(lists(tops), config["data"]["runs"]["first_stage"])
    config["loss"] = [{"name": "cet", "selection_model": "features", "selection_features": ["rank", "score"]}]
    output = train(config, "trainer.max_steps=60", "trainer.save_steps=60", "trainer.learning_rate=1e-5")
    assert folder.is_dir()
    selection = load_selection(output / "selection")
    assert selection.encoder is None
    nan = math.nan
    side = {"first_rank": torch.tensor([[1.0, 5.0, nan]]), "first_stage": torch.tensor([[0.0, -4.0, nan]])}
    top, below, unfound = selection([], side).detach()[0].tolist()
    assert top > below + 1
    assert top > unfound + 1


def test_features_need_a_first_stage(config: dict[str, Any]):
    config["data"]["runs"].pop("first_stage")
    config["loss"] = [{"name": "cet", "selection_features": ["rank"]}]
    with pytest.raises(ConfigError, match=r"data\.runs\.first_stage"):
        train(config)
    config["loss"] = [{"name": "cet", "selection_model": config["output"] + "-nowhere"}]
    with pytest.raises(ConfigError, match="does not load as a CrossEncoder"):
        train(config)


@pytest.mark.slow
def test_two_processes_end_at_the_weights_of_one(
    train_on_ranks: Callable[..., list[Path]], without_dropout: Callable[[str | Path], Path], config: dict[str, Any]
):
    """Both models, with weights normalised over the batch of both processes."""
    config["model"] = str(without_dropout(config["model"]))
    config["loss"] = [{"name": "cet", "self_normalise": True, "selection_features": ["rank", "score"]}]
    outputs = train_on_ranks(config, 4, learning_rate=0.05)
    expected, before = states(outputs[0], 6), states(outputs[0], 3)
    for name, value in states(outputs[1], 6).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    moved = [name for name, value in expected.items() if not torch.equal(value, before[name])]
    assert any(name.startswith("selection.encoder") for name in moved)
    assert any(name.startswith("selection.head") for name in moved)
    one, two = (logged(output, 6)[0] for output in outputs)
    for name in ("cet-rank-correlation", "cet-relevance-weight-median", "cet-selection-weight-max"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), "told of the whole batch"


@pytest.mark.parametrize("section", ["CET", "Curricula"])
def test_the_documented_configuration_is_one(section: str):
    """All that is wrong with it is that its files are not here."""
    from rtk.retrieval.training.config import load_config

    text = (Path(__file__).parent.parent / "docs" / "training.md").read_text(encoding="utf-8")
    block = text.split(f"\n## {section}\n")[1].split("```yaml\n")[1].split("```")[0]
    with pytest.raises(ConfigError) as caught:
        load_config(yaml.safe_load(block))
    assert all("there is no file" in problem for problem in caught.value.problems)
