"""Relevance feedback: the published figures, what moves and what does not, and the second search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rtk.errors import ConfigError, DataError
from rtk.eval import open_collection, read_run
from rtk.eval.run import Run
from rtk.indexes.faiss_index import FaissIndex
from rtk.indexes.torch_index import TorchIndex
from rtk.retrieval.feedback import Feedback, feedback_queries, feedback_run
from rtk.retrieval.losses.relevance_feedback import Distillation, distil_queries
from rtk.retrieval.search import Retriever

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "rerank" / "relevance_feedback.json").read_text())


def golden_batch(which: str, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Passages by first stage and their teacher's scores for both queries, as tensors."""
    vectors = np.asarray(GOLDEN["passage_embeddings"], dtype=np.float32)
    names = [GOLDEN["passage_ids_by_first_stage"][qid][:depth] for qid in ("q0", "q1")]
    passages = np.stack([vectors[[int(name[1:]) for name in each]] for each in names])
    scores = [[GOLDEN[which][qid][name] for name in each] for qid, each in zip(("q0", "q1"), names, strict=True)]
    return torch.from_numpy(passages), torch.tensor(scores)


@pytest.mark.parametrize("case", GOLDEN["runs"], ids=lambda case: case["case"])
def test_the_published_code_ends_at_the_same_vectors(case: dict[str, Any]) -> None:
    moved = torch.tensor(GOLDEN["query_embeddings"])
    if case["ce_top_k"]:
        passages, scores = golden_batch("cross_encoder_scores", case["ce_top_k"])
        stage = Distillation("kl", case["num_updates"], case["learning_rate"])
        moved = distil_queries(moved, passages, scores, torch.ones(scores.shape, dtype=torch.bool), stage=stage)
    passages, scores = golden_batch("llm_scores", case["llm_top_k"])
    stage = Distillation("ranknet", case["llm_num_updates"], case["llm_learning_rate"])
    moved = distil_queries(moved, passages, scores, torch.ones(scores.shape, dtype=torch.bool), stage=stage)
    expected = torch.tensor(case["new_query_embeddings"])
    assert torch.allclose(moved, expected, atol=1e-6)


def drawn(rows: int, dimension: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)


def test_a_query_moves_by_itself() -> None:
    """Padding and company change nothing; a query without a teacher stays."""
    queries, passages = drawn(3, 8, 0), [drawn(12, 8, 1), drawn(5, 8, 2), drawn(0, 8, 3)]
    teachers = [drawn(12, 1, 4)[:, 0], drawn(5, 1, 5)[:, 0], np.zeros(0, np.float32)]
    for feedback in (Feedback(), Feedback(score_steps=5, ordinal=False), Feedback(relative=True, order_rate=0.05)):
        together = feedback_queries(queries, passages, teachers, feedback=feedback)
        for row in range(3):
            part = slice(row, row + 1)
            alone = feedback_queries(queries[part], passages[part], teachers[part], feedback=feedback)
            np.testing.assert_allclose(together[part], alone, atol=1e-6)
        np.testing.assert_allclose(together[2], queries[2], rtol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), np.linalg.norm(queries, axis=1), rtol=1e-5)


def test_relative_steps_do_not_see_the_scale_of_vectors() -> None:
    queries, passages, teacher = drawn(1, 8, 0), [drawn(12, 8, 1)], [drawn(12, 1, 4)[:, 0]]
    feedback = Feedback(relative=True, order_rate=0.05)
    one = feedback_queries(queries, passages, teacher, feedback=feedback)
    ten = feedback_queries(queries * 0.1, [passages[0] * 10], teacher, feedback=feedback)
    np.testing.assert_allclose(one, ten * 10, atol=1e-5)
    absolute = Feedback(order_rate=0.05)
    moved = feedback_queries(queries * 0.1, [passages[0] * 10], teacher, feedback=absolute)
    assert not np.allclose(one, moved * 10, atol=1e-3)


def test_the_order_is_learned_and_a_shuffled_one_is_not() -> None:
    hidden, passages = drawn(1, 8, 7)[0], drawn(40, 8, 1)
    teacher = passages @ hidden
    feedback = Feedback(order_steps=200, order_rate=0.05)
    start = drawn(1, 8, 0)
    moved = feedback_queries(start, [passages], [teacher], feedback=feedback)[0]
    unseen = drawn(500, 8, 9)

    def agreement(query: np.ndarray) -> float:
        return float(np.corrcoef(unseen @ query, unseen @ hidden)[0, 1])

    shuffled = np.random.default_rng(1).permutation(teacher)
    control = feedback_queries(start, [passages], [shuffled], feedback=feedback)[0]
    assert agreement(moved) > 0.95
    assert agreement(control) < 0.5


class Vectors:
    """An encoder that knows its queries' vectors."""

    def __init__(self, known: dict[str, np.ndarray]) -> None:
        self.known = known

    def encode_query(self, texts: Any, /) -> np.ndarray:
        return np.stack([self.known[text] for text in texts])

    encode_document = encode_query


@pytest.fixture
def world(beir_folder: Any) -> tuple[Any, dict[str, np.ndarray], np.ndarray, list[str]]:
    """A collection of three queries over 200 documents, the queries' vectors, the documents' vectors and ids."""
    ids = [f"d{row:03d}" for row in range(200)]
    texts = ["one", "two", "three"]
    folder = beir_folder(
        corpus=[{"_id": name, "title": "", "text": name} for name in ids],
        queries=[{"_id": f"q{at}", "text": text} for at, text in enumerate(texts)],
        qrels={"test": [(f"q{at}", ids[0], 1) for at in range(3)]},
    )
    known = {text: drawn(1, 8, at)[0] for at, text in enumerate(texts)}
    return open_collection(folder), known, drawn(200, 8, 77), ids


@pytest.mark.parametrize("kind", ["torch", "torch-cosine", "faiss"])
def test_the_second_search_finds_more_of_what_the_teacher_likes(world: Any, kind: str) -> None:
    collection, known, vectors, ids = world
    index: Any = (
        FaissIndex.from_arrays(vectors, ids)
        if kind == "faiss"
        else TorchIndex.from_arrays(vectors, ids, similarity="cosine" if "cosine" in kind else "dot")
    )
    retriever, queries = Retriever(Vectors(known), index), collection.queries("test")
    first = retriever.run(queries, 30)
    hidden = {f"q{at}": drawn(1, 8, 50 + at)[0] for at in range(3)}
    liked = {qid: {ids[row] for row in np.argsort(-(vectors @ vector))[:20]} for qid, vector in hidden.items()}
    place = {name: row for row, name in enumerate(ids)}

    def rerank(entry: Any) -> tuple[str, list[str], np.ndarray]:
        names = list(entry.documents)
        return entry.qid, names, vectors[[place[name] for name in names]] @ hidden[entry.qid]

    teacher = Run.from_lists([rerank(entry) for entry in first])
    feedback = Feedback(depth=30, order_steps=100, order_rate=0.02)
    second = feedback_run(retriever, queries, teacher, 30, feedback=feedback, exclude={"q0": ["d000"]})
    assert [entry.qid for entry in second] == [entry.qid for entry in first]
    assert "d000" not in list(second["q0"].documents)
    gained = [
        len(liked[qid] & set(second[qid].documents)) - len(liked[qid] & set(first[qid].documents)) for qid in liked
    ]
    assert sum(gained) > 0
    assert min(gained) >= 0


def test_queries_that_the_teacher_lacks_are_searched_as_they_are(world: Any) -> None:
    collection, known, vectors, ids = world
    retriever, queries = Retriever(Vectors(known), TorchIndex.from_arrays(vectors, ids)), collection.queries("test")
    first = retriever.run(queries, 10)
    teacher = Run.from_lists([("q1", ids[49::-1], np.arange(50, 0, -1, dtype=np.float32))])
    second = feedback_run(retriever, queries, teacher, 10, feedback=Feedback(order_rate=0.1))
    assert list(second["q0"].documents) == list(first["q0"].documents)
    assert list(second["q1"].documents) != list(first["q1"].documents)


def test_what_cannot_be_is_refused(world: Any) -> None:
    collection, known, vectors, ids = world
    queries = collection.queries("test")
    retriever = Retriever(Vectors(known), TorchIndex.from_arrays(vectors, ids))
    with pytest.raises(DataError, match="'nowhere'"):
        feedback_run(retriever, queries, Run.from_lists([("q0", ["nowhere", "d001"], [1.0, 0.5])]), 5)
    with pytest.raises(ConfigError, match="no steps"):
        Feedback(order_steps=0)
    with pytest.raises(ConfigError, match="depth 'abc': expected a number"):
        Feedback(depth="abc")  # pyright: ignore[reportArgumentType]

    class Terms:
        ids = ("a",)

        def search(self, *given: Any, **options: Any) -> Any: ...

    with pytest.raises(ConfigError, match="gives no vectors"):
        feedback_run(Retriever(None, Terms()), queries, Run.from_lists([]), 5)


def test_on_the_command_line(world: Any, rtk: Any, tmp_path: Path, tiny_models: Path) -> None:
    collection, *_ = world
    folder = collection.folder if hasattr(collection, "folder") else collection.name
    model = tiny_models / "dense"
    assert rtk(f"index {folder} --out {tmp_path / 'index'} --retriever {model} --backend torch")[0] == 0
    search = f"search {tmp_path / 'index'} -c {folder} --split test -k 20"
    assert rtk(f"{search} --out {tmp_path / 'first.trec'}")[0] == 0
    again = f"{search} --feedback {tmp_path / 'first.trec'}"
    code, _, said = rtk(f"{again} --feedback-set order_rate=0.2 --out {tmp_path / 'again.trec'}")
    assert code == 0, said
    first, second = read_run(tmp_path / "first.trec"), read_run(tmp_path / "again.trec")
    assert len(second) == len(first) == 3
    assert not np.array_equal(first.scores, second.scores)
    code, _, said = rtk(f"{again} --feedback-set rate=1 --out {tmp_path / 'other.trec'}")
    assert code == 2
    assert "order_rate" in said
