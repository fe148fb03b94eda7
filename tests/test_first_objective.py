"""FIRST's joint objective, from the published conversations to the published figures, whatever padding is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rtk.retrieval.losses.context import LossContext
from rtk.retrieval.losses.list_generation import dealt_labels
from rtk.retrieval.losses.modules import make_loss
from rtk.retrieval.losses.ranking import list_net
from rtk.retrieval.training.config import load_config
from rtk.retrieval.training.kinds import EXAMPLES
from rtk.retrieval.training.language_models import list_writer
from rtk.retrieval.training.models import load_model

GOLDENS = Path(__file__).parent / "goldens" / "rerank"
OBJECTIVE = json.loads((GOLDENS / "ranking_losses.json").read_text())["combined_objective"]
RANK_LOSSES = {
    "ranknet_weighted": "weighted-ranknet", "ranknet": "ranknet", "lambda": "lambdarank", "listnet": "listnet",
}  # fmt: skip


@pytest.fixture(scope="module", params=range(len(OBJECTIVE["runs"])), ids=["own-padding", "padding-is-the-end"])
def objective(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(the published run, what the library made of its conversations, a configuration of each ranking loss); the
    tokenizer pads as the run's did."""
    from transformers import AutoTokenizer

    run = OBJECTIVE["runs"][request.param]
    folder = tmp_path_factory.mktemp("objective")
    published = GOLDENS / "tiny-llama-3-rerank"
    shutil.copytree(published, folder / "model", ignore=shutil.ignore_patterns("special_tokens_map.json"))
    tokenizer = AutoTokenizer.from_pretrained(published)
    tokenizer.pad_token = run["pad_token"]
    tokenizer.save_pretrained(folder / "model")
    talks = folder / "talks.jsonl"
    talks.write_text("".join(json.dumps(each) + "\n" for each in OBJECTIVE["conversations"]))
    configs = {
        name: load_config(
            {
                **{"method": "first", "model": str(folder / "model"), "data": {"lists": str(talks)}},
                **{"sampling": {"window": 5}, "prompt": {"double_bos": True}, "output": str(folder / "out")},
                "loss": [{"name": "first", "rank": kind, "dealt": True}],
            }
        )
        for name, kind in RANK_LOSSES.items()
    }
    config, kind = configs["ranknet_weighted"], EXAMPLES["language-model"]
    model, tables = load_model(config).eval(), kind.open(config)
    batch = kind.collator(model, config)([(tables[0].window(row, 0, row, 0), 0) for row in range(2)])
    return run, (model, batch, tables), configs


def test_the_joint_objective_reads_the_published_tokens_whatever_padding_is(objective: Any):
    """The published code takes for the prompt's length the tokens that are not padding: where padding is the end token
    it is short by the prompt's two turns, and reads before the bracket."""
    run, (model, batch, _), configs = objective
    own = run["pad_token"] == "<|pad|>"
    assert list_writer(model, configs["listnet"]).tokenizer.pad_token == run["pad_token"]
    for slot, length in enumerate(batch["label"]["lengths"].tolist()):
        found = batch["input_ids"][slot][batch["attention_mask"][slot].bool()].tolist()
        assert found == run["input_ids"][slot][: len(found)]
        assert run["source_lens"][slot] == len(found) - length - (0 if own else 2)
        assert (run["token_at_source_len"][slot] == "[") == own


@pytest.mark.parametrize("name", RANK_LOSSES)
def test_the_joint_objective_is_the_published_one_whatever_padding_is(objective: Any, name: str):
    """Both times the figures of the run whose padding is a token of its own: the other's come from the wrong position,
    with two tokens of the prompt among the targets."""
    _, (model, batch, tables), configs = objective
    expected = OBJECTIVE["runs"][0]["results"][name]
    loss = make_loss("language-model", configs[name].loss, LossContext(model, tables, configs[name]))
    features, label = {key: value for key, value in batch.items() if key != "label"}, batch["label"]
    with torch.no_grad():
        terms = {key: float(value) for key, value in loss(model, features, label).items()}
        scores = loss.identifier_logits(loss._logits(model, features, label["targets"].shape[1] + 1), label)
    if name == "listnet":  # the published one adds 1e-10 to probabilities, which shows in the fourth digit
        assert terms["first-rank"] == pytest.approx(expected["weight_of_rank"] * expected["rank"], rel=3e-4)
        labels = dealt_labels(scores, label["levels"], label["valid"])
        terms["first-rank"] = 0.1 * float(list_net(scores, labels, label["valid"], epsilon=1e-10))
    assert terms["first-lm"] == pytest.approx(expected["generation_alone"], rel=1e-6)
    assert terms["first-rank"] == pytest.approx(expected["weight_of_rank"] * expected["rank"], rel=1e-6)
    assert sum(terms.values()) == pytest.approx(expected["total"], rel=1e-6)
