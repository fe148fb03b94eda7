"""ADORE end to end with tiny models: only queries learn, against an index that is searched live and never rebuilt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rtk.errors import ConfigError, DataError, IndexMismatch

QUERIES = ["file", "cell", "wing", "heat", "vitamin", "cancer"]
DOCUMENTS = ["json", "date", "path", "flow", "gene", "list", "air", "string", "protein", "number", "merge", "risk"]
SIZE = len(QUERIES)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def toy(beir_folder: Callable[..., Path]) -> Path:
    """The documents of each query are two unlike words, one judged better; only training can match them."""
    corpus = [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(DOCUMENTS)]
    queries = [{"_id": f"q{n}", "text": text} for n, text in enumerate(QUERIES)]
    rows = [(f"q{n}", f"d{n}", 2) for n in range(SIZE)] + [(f"q{n}", f"d{n + SIZE}", 1) for n in range(SIZE)]
    return beir_folder("toy", corpus, queries, {"train": rows, "dev": rows})


def make_index(toy: Path, model: Path, out: Path, backend: str = "torch") -> Path:
    from rtk.retrieval.indexing import build_index

    build_index(toy, out, retriever=str(model), backend=backend)
    return out


@pytest.fixture
def index(toy: Path, tiny_models: Path, tmp_path: Path) -> Path:
    return make_index(toy, tiny_models / "dense", tmp_path / "old.index")


@pytest.fixture
def config(toy: Path, index: Path, tiny_models: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "method": "adore",
        "model": str(tiny_models / "dense"),
        "data": {"collection": str(toy), "index": str(index)},
        "loss": [{"name": "adore", "k": 5, "metric_cut": 5}],
        "trainer": {"per_device_train_batch_size": 3, "learning_rate": 3e-3, "max_steps": 6, "use_cpu": True},
        "evaluation": {"collection": str(toy), "split": "dev", "every": 3, "measure": "nDCG@10"},
        "output": str(tmp_path / "model"),
    }


def train(config: dict[str, Any], *overrides: str) -> Path:
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.trainer import train as run

    return run(load_config(config, overrides))


def record(output: Path) -> dict[str, Any]:
    return json.loads((output / "rtk-run.json").read_text())


def state(output: Path) -> dict[str, torch.Tensor]:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(output), device="cpu").state_dict()


def trained(config: dict[str, Any]) -> Path:
    return train(
        {**config, "trainer": {**config["trainer"], "max_steps": 60, "per_device_train_batch_size": 6}},
        "evaluation.every=30", "trainer.lr_scheduler_type=constant",
    )  # fmt: skip


def test_queries_learn_documents_stay_and_the_old_index_serves_the_new_model(
    config: dict[str, Any], toy: Path, index: Path, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from sentence_transformers import SentenceTransformer
    from typer.testing import CliRunner

    from rtk.eval.files import read_run
    from rtk.retrieval.cli.main import app
    from rtk.retrieval.encoders.adapters import DenseAdapter

    with monkeypatch.context() as patch:  # neither training nor evaluation may encode a document

        def refuse(*_: Any) -> Any:
            raise AssertionError("a document was encoded")

        patch.setattr(DenseAdapter, "encode_document", refuse)
        output = trained(config)
    values = [entry["nDCG@10"] for entry in record(output)["evaluations"]]
    assert max(values[1:]) > values[0] + 0.2
    old = SentenceTransformer(str(tiny_models / "dense"), device="cpu")
    new = SentenceTransformer(str(output), device="cpu")
    np.testing.assert_array_equal(new.encode_document(DOCUMENTS), old.encode_document(DOCUMENTS))
    assert not np.allclose(new.encode_query(QUERIES), old.encode_query(QUERIES), atol=1e-2)
    found: dict[str, list[list[str]]] = {}
    for name, model in {"old": tiny_models / "dense", "new": output}.items():
        run = tmp_path / f"{name}.trec"
        given = ["search", str(index), "-c", str(toy), "--split", "dev", "-k", "3", "-m", str(model), "-o", str(run)]
        done = CliRunner().invoke(app, given)
        assert done.exit_code == 0, done.output
        lists = read_run(run)
        found[name] = [lists.vocabulary.take(lists.codes[3 * row : 3 * row + 3]) for row in range(SIZE)]
    assert found["new"] != found["old"]


def test_a_trained_model_can_be_trained_on_and_still_serves_the_same_index(config: dict[str, Any], tmp_path: Path):
    first = train({**config, "evaluation": None})
    second = train({**config, "evaluation": None, "model": str(first), "output": str(tmp_path / "second")})
    before, after = state(first), state(second)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".sub_modules.query." in name for name in changed)


def test_each_step_searches_with_the_vectors_that_it_improves(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """The lists of a later step are others than those of the first: nothing is cached."""
    from rtk.retrieval.mining.live import LiveIndex

    seen: list[list[list[int]]] = []
    search = LiveIndex.search

    def watch(self: LiveIndex, queries: torch.Tensor, k: int) -> torch.Tensor:
        assert not queries.requires_grad
        found = search(self, queries, k)
        seen.append(found.tolist())
        return found

    monkeypatch.setattr(LiveIndex, "search", watch)
    settings = {**config["trainer"], "max_steps": 12, "per_device_train_batch_size": 6}
    train({**config, "trainer": settings, "evaluation": None})
    assert len(seen) == 12
    assert sorted(map(sorted, seen[0])) != sorted(map(sorted, seen[-1]))


def test_document_side_has_no_gradient(config: dict[str, Any]):
    from rtk.retrieval.training.config import load_config
    from rtk.retrieval.training.models import load_model

    model = load_model(load_config(config))
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trained
    assert all("sub_modules.query." in name for name in trained)
    assert {name.replace("sub_modules.query.", "sub_modules.document.") for name in trained} == {
        name for name, value in model.named_parameters() if not value.requires_grad
    }


def test_the_score_is_recorded_with_the_scale_of_the_index(config: dict[str, Any]):
    output = train(config)
    assert record(output)["score"] == {
        "similarity": "cosine", "scale": 20.0, "what": "scale times similarity, in the loss",
    }  # fmt: skip


def test_vectors_of_length_1_have_the_scale_of_cosines_under_a_dot_index_too(
    config: dict[str, Any], toy: Path, tiny_models: Path, tmp_path: Path
):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_models / "dense"), device="cpu")
    model.similarity_fn_name = "dot"
    model.save(str(tmp_path / "unit"))
    index = make_index(toy, tmp_path / "unit", tmp_path / "dot.index")
    model.pop(len(model) - 1)
    model.save(str(tmp_path / "free"))
    free = make_index(toy, tmp_path / "free", tmp_path / "free.index")
    given = {**config, "evaluation": None, "trainer": {**config["trainer"], "max_steps": 1}}
    for name, of, scale in (("unit", index, 20.0), ("free", free, 1.0)):
        output = train(
            {**given, "model": str(tmp_path / name), "output": str(tmp_path / f"on-{name}")}, f"data.index={of}"
        )
        found = record(output)["score"]
        assert (found["similarity"], found["scale"]) == ("dot", scale)


@pytest.mark.parametrize("backend", ["faiss", "faiss:IVF2,Flat"])
def test_any_dense_index_that_keeps_its_vectors_will_do(
    config: dict[str, Any], toy: Path, tiny_models: Path, tmp_path: Path, backend: str
):
    pytest.importorskip("faiss")
    other = make_index(toy, tiny_models / "dense", tmp_path / "faiss.index", backend)
    expected = state(train({**config, "evaluation": None}))
    output = train({**config, "evaluation": None, "output": config["output"] + "2"}, f"data.index={other}")
    assert all(torch.equal(value, expected[name]) for name, value in state(output).items())


@pytest.mark.parametrize("metric", ["rr", "ndcg"])
def test_resumed_equals_uninterrupted_bit_for_bit(config: dict[str, Any], metric: str, monkeypatch: pytest.MonkeyPatch):
    from rtk.retrieval.losses.live import AdoreLoss

    config["loss"][0]["metric"] = metric
    config["trainer"]["gradient_accumulation_steps"] = 2
    whole = train({**config, "output": config["output"] + "-whole"})
    forward, calls = AdoreLoss.forward, 0

    def stop(self: AdoreLoss, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 9:  # two a step: in the middle of step 5, after the checkpoint of step 3
            raise KeyboardInterrupt
        return forward(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(AdoreLoss, "forward", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    halves = train(config)
    expected = state(whole)
    assert all(torch.equal(value, expected[name]) for name, value in state(halves).items())
    assert record(halves)["evaluations"] == record(whole)["evaluations"]


def test_an_index_of_another_encoder_is_refused_and_both_are_named(
    config: dict[str, Any], toy: Path, tiny_dense: Any, tmp_path: Path
):
    with torch.no_grad():
        next(tiny_dense.parameters()).add_(0.5)
    tiny_dense.save_pretrained(str(tmp_path / "other-model"), create_model_card=False)
    other = make_index(toy, tmp_path / "other-model", tmp_path / "other.index")
    with pytest.raises(IndexMismatch) as caught:
        train(config, f"data.index={other}")
    assert "other-model" in str(caught.value)
    assert config["model"] in str(caught.value)


def test_an_index_of_another_collection_is_refused(
    config: dict[str, Any], tiny_models: Path, beir_folder: Callable[..., Path], tmp_path: Path
):
    other = make_index(beir_folder("elsewhere"), tiny_models / "dense", tmp_path / "elsewhere.index")
    with pytest.raises(IndexMismatch, match="elsewhere"):
        train(config, f"data.index={other}")


def test_only_a_dense_index_of_whole_documents_will_do(
    config: dict[str, Any], toy: Path, tiny_models: Path, tmp_path: Path
):
    from rtk.eval.chunking import Chunking
    from rtk.retrieval.indexing import build_index

    build_index(toy, tmp_path / "bm25.index")
    with pytest.raises(ConfigError, match="is a bm25 index"):
        train(config, f"data.index={tmp_path / 'bm25.index'}")
    model = str(tiny_models / "dense")
    build_index(toy, tmp_path / "chunks.index", retriever=model, backend="torch", chunking=Chunking(8, 0))
    with pytest.raises(ConfigError, match="index of chunks"):
        train(config, f"data.index={tmp_path / 'chunks.index'}")


def test_an_index_stored_in_half_precision_serves(config: dict[str, Any], toy: Path, tiny_models: Path, tmp_path: Path):
    from rtk.retrieval.indexing import build_index

    for dtype in ("float16", "bfloat16"):
        out = tmp_path / f"{dtype}.index"
        build_index(toy, out, retriever=str(tiny_models / "dense"), backend="torch", dtype=dtype)
        trained_on = {**config, "evaluation": None, "output": str(tmp_path / dtype)}
        assert record(train(trained_on, f"data.index={out}"))["status"] == "finished"


def table_of(toy: Path) -> Any:
    from rtk.eval.collection import open_collection
    from rtk.retrieval.training.data import make_table

    return make_table(open_collection(str(toy)), "train")


def exact(ids: list[str], **settings: Any) -> Any:
    from rtk.indexes import TorchIndex

    vectors = np.random.default_rng(0).standard_normal((len(ids), 8)).astype(np.float32)
    return TorchIndex.from_arrays(vectors, ids, **settings)


def test_judged_documents_that_the_index_lacks_are_counted_and_an_index_without_any_is_refused(toy: Path):
    from rtk.retrieval.mining.live import LiveIndex

    live = LiveIndex(exact(["d7", "x", "d0", "d1"]), table_of(toy), None)
    assert live.missing == 2 * SIZE - 3
    relevant = live.relevant(np.array([1, 0, 5]), torch.device("cpu"))
    assert relevant.rows.tolist() == [[3, 0], [2, -1], [-1, -1]]
    assert relevant.grades.tolist() == [[2, 1], [2, 0], [0, 0]]
    with pytest.raises(DataError, match="none of the 12 relevant documents"):
        LiveIndex(exact(["a", "b"]), table_of(toy), None)


@pytest.mark.parametrize("why", ["grade", "pool"])
def test_what_is_judged_relevant_and_no_positive_is_no_negative(toy: Path, why: str):
    """Below the positives' grade, or outside of the pool: as in every other method."""
    from rtk.eval.collection import open_collection
    from rtk.eval.run import Run
    from rtk.indexes import TorchIndex
    from rtk.retrieval.losses.adore import adore_loss, append_unfound
    from rtk.retrieval.mining.live import LiveIndex
    from rtk.retrieval.training.data import make_table
    from rtk.retrieval.training.examples import RoleRuns

    best = Run.from_lists([(f"q{n}", [f"d{n}"], [1.0]) for n in range(SIZE)])
    settings: dict[str, Any] = {"positive_grade": 2} if why == "grade" else {"runs": RoleRuns(pool=best)}
    table = make_table(open_collection(str(toy)), "train", **settings)
    order = [7, 1, 3, 2, 0, 4, 5, 6, 8, 9, 10, 11]  # d7, relevant for q1 and no positive, stands first
    live = LiveIndex(TorchIndex.from_arrays(np.eye(12, dtype=np.float32), [f"d{n}" for n in order]), table)
    queries = torch.linspace(1, 0.1, 12)[None].requires_grad_()
    row = np.array([table.qids(np.arange(len(table))).index("q1")])
    relevant = live.relevant(row, torch.device("cpu"))
    found = live.search(queries.detach(), 4)
    assert found.tolist() == [[0, 1, 2, 3]]
    lists = live.without_unsettled(append_unfound(found, relevant.rows, relevant.grades), row)
    assert lists.rows.tolist() == [[-1, 1, 2, 3]]
    adore_loss(live.scores(queries, lists.rows), lists, metric_cut=4).backward()
    assert queries.grad is not None
    assert queries.grad[0, 0] == 0
    assert (queries.grad[0, 2:4] > 0).all()
    settled = LiveIndex(live.exact, make_table(open_collection(str(toy)), "train"))
    assert settled.without_unsettled(lists, row) is lists


def test_scores_are_the_index_s_own_and_differentiate_in_the_queries_only(toy: Path):
    from rtk.retrieval.mining.live import LiveIndex

    for similarity in ("dot", "cosine"):
        index = exact([f"d{n}" for n in range(12)], similarity=similarity)
        live = LiveIndex(index, table_of(toy), None)
        queries = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        rows = live.search(queries, 4)
        scores = live.scores(queries, torch.cat([rows, torch.full((3, 1), -1)], dim=1))
        expected = index.topk(queries, 4)[0]
        torch.testing.assert_close(scores[:, :4], expected)
        assert (scores[:, 4] == 0).all()
        scores.sum().backward()
        assert queries.grad is not None


def test_scores_stay_exact_under_mixed_precision(toy: Path):
    from rtk.retrieval.mining.live import LiveIndex

    live = LiveIndex(exact([f"d{n}" for n in range(12)]), table_of(toy))
    queries = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    rows = live.search(queries, 4)
    expected = live.scores(queries, rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(live.search(queries, 4), rows)
        assert torch.equal(live.scores(queries, rows), expected)


def test_each_collection_of_a_mixture_has_its_index(config: dict[str, Any], toy: Path, index: Path):
    part = {"collection": str(toy), "index": str(index)}
    given = {
        **config,
        "evaluation": None,
        "data": {"mixture": [{**part, "weight": 1}, {**part, "split": "dev", "weight": 1}]},
    }
    assert len(record(train(given))["data"]) == 2


def test_an_index_that_changed_does_not_resume(
    config: dict[str, Any], toy: Path, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from rtk.retrieval.losses.live import AdoreLoss

    forward, calls = AdoreLoss.forward, iter(range(4))

    def stop(self: AdoreLoss, *given: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return forward(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(AdoreLoss, "forward", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    shutil.rmtree(config["data"]["index"])
    make_index(toy, tiny_models / "dense", Path(config["data"]["index"]), "faiss")
    with pytest.raises(ConfigError, match=r"data\.0\.fingerprint"):
        train(config)


def test_what_does_not_go_together_is_told_before_anything_is_loaded(config: dict[str, Any], tmp_path: Path):
    from rtk.retrieval.training.config import load_config

    def problems(given: dict[str, Any], *overrides: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load_config(given, overrides)
        return list(caught.value.problems)

    assert any("data.index: required" in line for line in problems({**config, "data": {"collection": "x"}}))
    assert any("there is no folder" in line for line in problems(config, f"data.index={tmp_path / 'nowhere'}"))
    assert any("does not go with method 'adore'" in line for line in problems({**config, "loss": ["infonce"]}))
    assert any("does not go with method 'contrastive'" in line for line in problems(config, "method=contrastive"))
    assert any("searches no index" in line for line in problems({**config, "loss": ["infonce"]}, "method=contrastive"))


@pytest.mark.parametrize("section", ["STAR", "ADORE"])
def test_the_documented_configurations_are_whole(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from rtk.retrieval.training.config import load_config

    text = (Path(__file__).parent.parent / "docs" / "training.md").read_text(encoding="utf-8")
    given = text.split(f"## {section}\n")[1].split("```yaml\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    Path("star.index").mkdir()
    Path("hard.parquet").touch()
    Path("c.yaml").write_text(given)
    assert load_config("c.yaml").method == section.lower()


@pytest.mark.slow
def test_two_processes_end_at_the_weights_of_one(
    train_on_ranks: Callable[..., list[Path]], without_dropout: Callable[[str | Path], Path], config: dict[str, Any]
):
    config |= {"model": str(without_dropout(config["model"])), "evaluation": {**config["evaluation"], "every": 2}}
    one, two = train_on_ranks(config, 6, learning_rate=0.05, max_steps=4)
    expected = state(one)
    for name, value in state(two).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    assert record(two)["evaluations"] == record(one)["evaluations"]
