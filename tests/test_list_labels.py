"""Published listwise labels: a thousand orders that GPT-4o gave to BM25's top hundred of MS MARCO, read as `rtk train`
reads them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtk.retrieval.rerankers.permutations import parse_permutation
from rtk.retrieval.training.config import TrainConfig, load_config
from rtk.retrieval.training.kinds import EXAMPLES
from rtk.retrieval.training.language_models import list_writer
from rtk.retrieval.training.models import load_model
from rtk.retrieval.training.trainer import train

LEFT_OUT = 10  # queries of the file that the collection does not have


@pytest.fixture(scope="module")
def labels(shared_data: Path) -> tuple[Path, list[dict[str, Any]]]:
    """(the published file, its lines)."""
    path = shared_data / "listwise-labels" / "msmarco-train-gpt4o-bm25top100.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return path, [json.loads(line) for line in stream]


@pytest.fixture(scope="module")
def collection(labels: tuple[Path, list[dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The passages of the file with their ids as texts, because it has no others; queries but for its last ten."""
    folder = tmp_path_factory.mktemp("labels") / "passages"
    (folder / "qrels").mkdir(parents=True)
    lists = labels[1][:-LEFT_OUT]
    passages = dict.fromkeys(name for each in labels[1] for name in each["initial_list"])
    documents = [{"_id": name, "text": f"p{name}"} for name in passages]
    queries = [{"_id": each["qid"], "text": f"query {each['qid']}"} for each in lists]
    for name, lines in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    judged = "".join(f"{each['qid']}\t{each['final_list'][0]}\t1\n" for each in lists)
    (folder / "qrels" / "train.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    return folder


@pytest.fixture
def config(labels: Any, collection: Path, tiny_llama: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_llama),
        "data": {"collection": str(collection), "lists": str(labels[0])},
        "trainer": {
            **{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_steps": 1, "use_cpu": True},
            **{"bf16": False, "gradient_checkpointing": False, "neftune_noise_alpha": None},
        },
        "output": str(tmp_path / "model"),
    }


def opened(config: dict[str, Any], **more: Any) -> tuple[TrainConfig, Any]:
    resolved = load_config({**config, **more})
    (table,) = EXAMPLES["language-model"].open(resolved)
    return resolved, table


@pytest.mark.parametrize(("method", "shown"), [("first", 20), ("full-rank", 100)])
def test_every_published_list_is_read_in_its_two_orders(config: Any, labels: Any, method: str, shown: int) -> None:
    _, table = opened(config, method=method)
    kept = labels[1][:-LEFT_OUT]
    assert list(table.ids) == [each["qid"] for each in kept]
    assert (table.report.outside_split, table.report.queries) == (LEFT_OUT, len(kept))
    assert table.report.documents == shown * len(kept)
    assert table.report.without_order == table.report.out_of_reach == table.report.unordered_documents == 0
    for row, each in enumerate(kept):
        entries = slice(*table.offsets[row : row + 2].tolist())
        first = each["initial_list"][:shown]
        assert table.documents.ids.take(table.entries[entries]) == first
        by_rank = [first[at] for at in np.argsort(table.ranks[entries])]
        assert by_rank == [name for name in each["final_list"] if name in set(first)]
        assert sorted(table.ranks[entries].tolist()) == list(range(shown))


@pytest.mark.parametrize("start", ["top", "anywhere"])
def test_every_window_holds_the_teacher_s_order_of_what_it_shows(config: Any, labels: Any, start: str) -> None:
    sampling = {"window": 20, "smallest": 2, "start": start, "shuffle": 0.5}
    _, table = opened(config, method="first", sampling=sampling)
    sizes: set[int] = set()
    for row, each in enumerate(labels[1][:-LEFT_OUT]):
        window = table.window(row, row % 50, row, 0)
        place = {f"p{name}": at for at, name in enumerate(each["final_list"])}
        places = [place[text] for text in window.passages]
        assert sorted(window.order) == list(range(len(places)))
        assert [places[at] for at in window.order] == sorted(places)
        assert list(np.argsort(-window.levels)) == list(window.order)
        if start == "top":
            assert {f"p{name}" for name in each["initial_list"][: len(places)]} == set(window.passages)
        sizes.add(len(places))
    assert sizes <= set(range(2, 21))
    assert {2, 20} <= sizes


@pytest.mark.parametrize("method", ["first", "full-rank"])
def test_the_labels_are_written_as_answers_and_train(config: Any, labels: Any, method: str) -> None:
    resolved, table = opened(config, method=method)
    writer = list_writer(load_model(resolved), resolved)
    for row in range(0, len(table), 99):
        window = table.window(row, 0, 0, 0)
        written = writer.write(window)
        said = writer.tokenizer.decode(written.answer[:-1])
        read = parse_permutation(said, len(window.passages), writer.identifiers)
        assert read.well_formed
        assert read.order == window.order
        best = next(name for name in labels[1][row]["final_list"] if f"p{name}" in window.passages)
        assert window.passages[read.order[0]] == f"p{best}"
    assert writer.writer.cut == 0
    output = train(resolved)
    (data,) = json.loads((output / "rtk-run.json").read_text())["data"]
    assert (data["queries"], data["outside_split"]) == (len(table), LEFT_OUT)
