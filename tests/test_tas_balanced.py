"""TAS-Balanced end to end with tiny models: topics, both teachers, ablations, resume, two processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from rtk.errors import ConfigError, DataError
from rtk.eval.files import write_run
from rtk.eval.run import Run
from rtk.retrieval.encoders.load import load_encoder
from rtk.retrieval.losses.batch import DenseBatch
from rtk.retrieval.losses.context import LossContext
from rtk.retrieval.losses.dense_terms import DENSE_TERMS
from rtk.retrieval.losses.distillation import in_batch_margin_mse
from rtk.retrieval.losses.in_batch_teacher import InBatchTeacher, late_interaction_scores
from rtk.retrieval.losses.options import LOSSES
from rtk.retrieval.sampling import read_clusters
from rtk.retrieval.training.config import load_config, print_config

pytest.importorskip("faiss")

GOLDENS = Path(__file__).parent / "goldens"
WORDS = ["file", "list", "text", "cell", "gene", "risk", "wing", "flow", "heat", "query", "date", "path"]
TOPICS = 3
SIZE = 18
"""Queries; query n has topic n % 3, document n as positive and the next two of its topic as negatives."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    folder = tmp_path / "toy"
    (folder / "qrels").mkdir(parents=True)
    words = [[WORDS[n % 12], WORDS[n * 5 % 12], WORDS[n // 12]] for n in range(SIZE)]  # no two alike
    documents = [{"_id": f"d{n}", "title": "", "text": " ".join(words[n]) + " the of" * (n % 4)} for n in range(SIZE)]
    queries = [{"_id": f"q{n}", "text": " ".join(reversed(words[n]))} for n in range(SIZE)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in documents))
    (folder / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in queries))
    for split in ("train", "dev"):
        rows = "".join(f"q{n}\td{n}\t1\n" for n in range(SIZE))
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    generator = np.random.default_rng(0)
    negatives = {n: [(n + TOPICS * step) % SIZE for step in (1, 2)] for n in range(SIZE)}
    lists = [(f"q{n}", [f"d{m}" for m in found], [2.0, 1.0]) for n, found in negatives.items()]
    write_run(Run.from_lists(lists), tmp_path / "bm25.run")
    scored = [
        (f"q{n}", [f"d{m}" for m in (n, *found)], [1.5, *generator.normal(0.7, 0.4, 2)])
        for n, found in negatives.items()
    ]
    write_run(Run.from_lists(scored), tmp_path / "cat.run")
    (tmp_path / "clusters.txt").write_text(
        "".join(" ".join(f"q{n}" for n in range(t, SIZE, TOPICS)) + "\n" for t in range(TOPICS))
    )
    return folder


@pytest.fixture
def student(tiny_models: Path, tmp_path: Path, without_dropout: Callable[[str | Path], Path]) -> Path:
    """Free dot products, as the method wants them, and no dropout."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    bert = without_dropout(tiny_models / "bert")
    model = SentenceTransformer(modules=[Transformer(str(bert)), Pooling(32, "cls")], similarity_fn_name="dot")
    model.save_pretrained(str(tmp_path / "student"), create_model_card=False)
    return tmp_path / "student"


@pytest.fixture
def config(toy: Path, student: Path, tiny_models: Path, tmp_path: Path) -> dict[str, Any]:
    runs = {"negatives": str(tmp_path / "bm25.run"), "teachers": [str(tmp_path / "cat.run")]}
    return {
        "method": "tas-balanced",
        "model": str(student),
        "data": {"collection": str(toy), "runs": runs},
        "lengths": {"document": 40},
        "sampling": {"clusters": str(tmp_path / "clusters.txt")},
        "loss": [
            {"name": "margin-mse", "similarity": "dot"},
            {"name": "in-batch-margin-mse", "teacher": str(tiny_models / "multi_vector")},
        ],
        "trainer": {"per_device_train_batch_size": 6, "learning_rate": 1e-3, "max_steps": 6, "use_cpu": True},
        "evaluation": {"collection": str(toy), "split": "dev", "every": 3, "measure": "RR@10"},
        "output": str(tmp_path / "model"),
    }


def train(config: dict[str, Any], *overrides: str, **options: Any) -> Path:
    from rtk.retrieval.training.trainer import train as run

    return run(load_config(config, overrides), **options)


def weights(output: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(output / "model.safetensors")


def record(output: Path) -> dict[str, Any]:
    return json.loads((output / "rtk-run.json").read_text())


def logs(output: Path) -> list[dict[str, Any]]:
    """What was logged, from the last checkpoint."""
    last = max((output / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return [entry for entry in json.loads((last / "trainer_state.json").read_text())["log_history"] if "loss" in entry]


# --- the teacher ---


def test_scores_are_those_of_the_authors_for_each_pair_alone():
    golden = json.loads((GOLDENS / "colbert_inbatch_scores.json").read_text())
    queries, documents = (torch.tensor(golden[name]) for name in ("query_vecs", "doc_vecs"))
    masks = [torch.tensor(golden[name]).bool() for name in ("query_mask", "doc_mask")]
    wanted = torch.tensor(golden["per_pair_forward_scores"])
    torch.testing.assert_close(late_interaction_scores(queries, documents, *masks), wanted, rtol=1e-6, atol=1e-6)
    lists = [
        [row[mask] for row, mask in zip(*side, strict=True)] for side in ((queries, masks[0]), (documents, masks[1]))
    ]
    torch.testing.assert_close(
        late_interaction_scores(*lists), wanted, rtol=1e-6, atol=1e-6
    )  # float32, as the library's
    wrong = torch.tensor(golden["inbatch_aggregation_as_published_BUGGY"])
    assert (late_interaction_scores(*lists) - wrong).abs().max() > 1


def test_scores_stay_float32_without_gradient_inside_mixed_precision():
    queries, documents = torch.randn(2, 3, 8, requires_grad=True), torch.randn(4, 5, 8)
    plain = late_interaction_scores(queries, documents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = late_interaction_scores(queries, documents)
    assert mixed.dtype == torch.float32
    assert not mixed.requires_grad
    torch.testing.assert_close(mixed, plain, rtol=0, atol=0)


def test_the_teacher_scores_a_batch_as_one_pair_after_another(tiny_models: Path, tiny_multi_vector: Any):
    queries, documents = ["file list", "cell"], [["file the list", "wing"], ["cell gene of heat flow", "query"]]
    path = str(tiny_models / "multi_vector")
    scores = InBatchTeacher(path, chunk=3).scores(queries, documents, torch.device("cpu"))
    flat = [documents[0][0], documents[1][0], documents[0][1], documents[1][1]]  # positives, then first negatives
    for i, query in enumerate(queries):
        for j, text in enumerate(flat):
            q, d = tiny_multi_vector.encode_query([query])[0], tiny_multi_vector.encode_document([text])[0]
            assert scores[i, j].item() == pytest.approx((q @ d.T).max(dim=1).values.sum().item(), abs=1e-4)
    short = InBatchTeacher(path, query_length=3, document_length=3).scores(queries, documents, torch.device("cpu"))
    assert (short - scores).abs().max() > 1e-3


def test_a_dense_teacher_gives_its_own_similarity(tiny_models: Path):
    queries, documents = ["file list", "cell"], [["file the list", "wing"], ["cell gene of heat flow", "query"]]
    teacher = InBatchTeacher(str(tiny_models / "dense"))
    encoder = load_encoder(str(tiny_models / "dense"))
    asked = np.asarray(encoder.encode_query(queries))
    read = np.asarray(encoder.encode_document([row[column] for column in range(2) for row in documents]))
    if encoder.similarity == "cosine":
        asked, read = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (asked, read))
    found = teacher.scores(queries, documents, torch.device("cpu"))
    np.testing.assert_allclose(found.numpy(), asked @ read.T, atol=1e-5)


def test_a_sparse_teacher_gives_its_products(tiny_models: Path):
    queries, documents = ["file list", "cell"], [["file the list", "wing"], ["cell gene of heat flow", "query"]]
    encoder = load_encoder(str(tiny_models / "sparse"))
    asked = encoder.encode_query(queries)
    read = encoder.encode_document([row[column] for column in range(2) for row in documents])
    found = InBatchTeacher(str(tiny_models / "sparse")).scores(queries, documents, torch.device("cpu"))
    np.testing.assert_allclose(found.numpy(), (asked @ read.T).toarray(), rtol=1e-5)


def test_an_inference_free_teacher_has_no_queries_to_cut(tiny_models: Path, tmp_path: Path):
    from sentence_transformers import SparseEncoder

    from rtk.retrieval.encoders.idf import uniform_idf
    from rtk.retrieval.encoders.inference_free import inference_free, static_side

    model = SparseEncoder(str(tiny_models / "sparse"), device="cpu")
    free = inference_free(model, uniform_idf(model.tokenizer))
    table = static_side(free, "query")
    assert table is not None
    table.weight.data[model.tokenizer.convert_tokens_to_ids("cell")] = -2.0  # below 0 counts as 0
    free.save_pretrained(str(tmp_path / "free"))
    teacher = InBatchTeacher(str(tmp_path / "free"), query_length=2, document_length=3)
    assert teacher.encoder.document.length == 3
    query = "file list text cell"  # a bag, read whole
    found = teacher.scores([query], [["file list text cell gene"]], torch.device("cpu"))
    encoder = teacher.encoder
    expected = encoder.encode_query([query]) @ encoder.encode_document(["file list text cell gene"]).T
    assert encoder.encode_query([query]).nnz == 3
    assert found.item() == pytest.approx(expected[0, 0], rel=1e-5)


def test_a_teacher_that_expands_queries_keeps_its_width(tiny_models: Path, tiny_multi_vector: Any, tmp_path: Path):
    """As ColBERT does, whatever the student reads."""
    tiny_multi_vector[0].query_expansion = {"strategy": "fixed", "length": 12}
    tiny_multi_vector.save_pretrained(str(tmp_path / "expanding"), create_model_card=False)
    teacher = InBatchTeacher(str(tmp_path / "expanding"), query_length=5, document_length=5)
    plain = load_encoder(str(tmp_path / "expanding"))
    asked, read = plain.encode_query(["file list"])[0], teacher.encoder.encode_document(["cell gene of heat flow"])[0]
    assert len(asked) == 12
    found = teacher.scores(["file list"], [["cell gene of heat flow"]], torch.device("cpu"))
    assert found.item() == pytest.approx((asked @ read.T).max(axis=1).sum(), abs=1e-4)


def test_a_teacher_by_distance_and_one_that_is_not_there_are_refused(tiny_models: Path, tmp_path: Path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_models / "dense"), device="cpu", similarity_fn_name="euclidean")
    model.save_pretrained(str(tmp_path / "distance"), create_model_card=False)
    with pytest.raises(ConfigError, match="compares by euclidean"):
        InBatchTeacher(str(tmp_path / "distance"))
    with pytest.raises(ConfigError, match="no encoder at"):
        InBatchTeacher("/no/such/model")


def test_unlike_teachers_of_the_batch_are_brought_together(tiny_models: Path):
    """Each over all documents of the batch; one that says the same of all of them is counted and left out."""
    names = ["multi_vector", "dense", "sparse"]
    paths = tuple(str(tiny_models / name) for name in names)
    texts = {
        "query_texts": ["file list", "cell"],
        "document_texts": [["file the list", "wing"], ["cell gene", "query"]],
    }
    options = LOSSES["in-batch-ensemble-kl"].options(
        name="in-batch-ensemble-kl", teachers=paths, teacher_scale=10, similarity="dot"
    )
    context = LossContext(torch.nn.Linear(2, 2))
    generator = torch.Generator().manual_seed(0)
    queries, vectors = torch.randn(2, 6, generator=generator), torch.randn(4, 6, generator=generator)
    own = torch.tensor([[0, 2], [1, 3]])

    def cost(side: dict[str, Any]) -> torch.Tensor:
        batch = DenseBatch(queries, vectors, own, {**side, "number": torch.zeros(2)})
        return DENSE_TERMS["in-batch-ensemble-kl"](options, context)(batch)

    columns = torch.stack([InBatchTeacher(path).scores(*texts.values(), torch.device("cpu")) for path in paths])
    low, high = columns.amin(dim=2, keepdim=True), columns.amax(dim=2, keepdim=True)
    target = (10 * (columns - low) / (high - low + 1e-6)).mean(dim=0).softmax(dim=1)
    expected = (target * (target.log() - (queries @ vectors.T).log_softmax(dim=1))).sum(dim=1).mean()
    assert cost(texts).item() == pytest.approx(expected.item(), rel=1e-4)
    assert context.metrics.take()["in-batch-ensemble-kl-constant-teachers"] == 0
    cost({**texts, "document_texts": [["file", "file"], ["file", "file"]]})
    assert context.metrics.take()["in-batch-ensemble-kl-constant-teachers"] == len(paths) * 2


def test_a_teacher_equal_to_the_student_costs_nothing_and_constants_cost_nothing():
    student = torch.randn(4, 8, dtype=torch.float64)
    own = torch.stack([torch.arange(4), 4 + torch.arange(4)], dim=1)
    shifted = student + torch.randn(4, 1, dtype=torch.float64)
    assert in_batch_margin_mse(student, shifted, own).item() == pytest.approx(0, abs=1e-12)


# --- training ---

FASTER = ["trainer.max_steps=60", "trainer.learning_rate=3e-3", "trainer.logging_steps=10"]


def test_training_fits_both_teachers_and_leaves_its_record(config: dict[str, Any]):
    output = train(config, *FASTER, "evaluation.every=30")
    found = logs(output)
    assert found[-1]["loss"] < 0.5 * found[0]["loss"]
    assert {"in-batch-margin-mse-teacher-accuracy", "in-batch-margin-mse-student-accuracy"} <= found[0].keys()
    told = record(output)["sampling"][0]
    assert told["clusters"]["clusters"] == TOPICS
    assert "18 queries in 3 clusters" in told["report"]
    assert read_clusters(output / "clusters.txt.gz")[0] == [f"q{n}" for n in range(0, SIZE, TOPICS)]
    assert not list(output.rglob("loss.safetensors"))  # the teacher is nobody's state
    from sentence_transformers import SentenceTransformer

    assert SentenceTransformer(str(output), device="cpu").encode(["file"]).shape == (1, 32)


@pytest.mark.parametrize(
    ("name", "teachers"),
    [
        ("in-batch-kl", ["multi_vector"]),
        ("in-batch-margin-mse", ["dense"]),
        ("in-batch-ensemble-kl", ["dense", "sparse"]),
    ],
)
def test_the_in_batch_teacher_alone_is_learnt(
    config: dict[str, Any], tiny_models: Path, name: str, teachers: list[str]
):
    paths = [str(tiny_models / teacher) for teacher in teachers]
    config["loss"] = [
        {"name": name, "similarity": "dot", **({"teacher": paths[0]} if len(paths) == 1 else {"teachers": paths})}
    ]
    output = train({**config, "evaluation": None}, *FASTER)
    found = logs(output)
    assert found[-1][name] < 0.3 * found[0][name]


def test_every_batch_has_one_topic_and_pairs_of_its_queries(config: dict[str, Any]):
    from rtk.retrieval.training.data import open_tables
    from rtk.retrieval.training.trainer import _arguments, _make_trainer

    loaded = load_config({**config, "evaluation": None})
    trainer = _make_trainer(loaded, _arguments(loaded, resuming=False), open_tables(loaded.data.parts()), None)
    sampler = trainer._examples.sampler
    for number in range(30):
        assert len({int(row) % TOPICS for row in sampler.draw(number).rows}) == 1
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["label"]["cat"].shape == (6, 2)
    assert not torch.isnan(batch["label"]["cat"]).any()
    assert len(batch["label"]["query_texts"]) == 6


LIST_LOSSES = ["in-batch-listnet", "in-batch-lambda", "in-batch-kl"]


@pytest.mark.parametrize(
    ("strategy", "losses"),
    [
        ("random", ["infonce"]),
        ("tas", ["infonce"]),
        ("random", ["margin-mse"]),
        ("tas", ["margin-mse"]),
        ("tas-balanced", ["margin-mse"]),
        ("balanced", ["margin-mse"]),
        ("random", ["margin-mse", "in-batch-margin-mse"]),
        ("tas", ["margin-mse", "in-batch-margin-mse"]),
        *[("tas-balanced", ["margin-mse", name]) for name in LIST_LOSSES],
    ],
)
def test_ablations_are_configurations(config: dict[str, Any], tiny_models: Path, strategy: str, losses: list[str]):
    teacher = {"teacher": str(tiny_models / "multi_vector")}
    config["loss"] = [{"name": name, "similarity": "dot", **(teacher if "in-batch" in name else {})} for name in losses]
    config["sampling"]["strategy"] = strategy
    if strategy == "random":
        config["sampling"].pop("clusters")  # 2000 of 18 queries would be refused, if they were made
    if losses == ["infonce"]:
        config["data"]["runs"].pop("teachers")
    output = train(
        {**config, "evaluation": None}, "trainer.max_steps=2", "trainer.save_steps=2", "trainer.logging_steps=1"
    )
    assert all(np.isfinite(entry[name]) for entry in logs(output) for name in losses)
    assert (output / "clusters.txt.gz").exists() == strategy.startswith("tas")


@pytest.mark.parametrize("metric", ["l2", "inner-product"])
def test_clusters_are_made_at_the_start_by_the_model_itself(config: dict[str, Any], student: Path, metric: str):
    config["sampling"] = {"clusters": 4, "cluster_metric": metric}
    loaded = load_config({**config, "evaluation": None})
    assert loaded.sampling.cluster_encoder == str(student)  # type: ignore[attr-defined]
    assert load_config(yaml.safe_load(print_config(loaded))) == loaded
    output = train({**config, "evaluation": None}, "trainer.max_steps=1")
    made = read_clusters(output / "clusters.txt.gz")
    assert (len(made), made.sizes().queries) == (4, SIZE)


def test_more_clusters_than_queries_are_refused(config: dict[str, Any]):
    config["sampling"] = {"clusters": 2000}
    with pytest.raises(ConfigError, match="18 queries cannot make 2000 clusters"):
        train({**config, "evaluation": None})


def test_resumed_equals_uninterrupted_bit_for_bit(config: dict[str, Any], interrupted: Callable[..., None]):
    config["sampling"] = {"clusters": 4}
    config["loss"] = [  # cosines with scales that are trained beside the model
        {"name": "margin-mse", "similarity": "cosine"},
        {**config["loss"][1], "similarity": "cosine"},
    ]
    config["trainer"]["max_steps"] = 10
    whole = train({**config, "output": config["output"] + "-whole"})
    interrupted(config, 7)
    halves = train(config)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(halves).items())
    assert record(halves)["evaluations"] == record(whole)["evaluations"]


def test_other_clusters_do_not_resume(config: dict[str, Any], tmp_path: Path, interrupted: Callable[..., None]):
    interrupted(config, 4)
    path = tmp_path / "clusters.txt"
    path.write_text(path.read_text().replace("\n", " ", 1))
    with pytest.raises(ConfigError, match=r"sampling\.0\.fingerprint"):
        train(config)


def test_cached_gradients_and_worker_processes_change_nothing(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """Also where tokenizers are told to use threads, as the command line does: forked workers have none of them."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    config = {**config, "evaluation": None}
    config["trainer"] |= {"max_steps": 3, "optim": "sgd", "learning_rate": 1e-3}
    plain = weights(train({**config, "output": config["output"] + "-plain"}))
    cached = weights(train({**config, "mini_batch_size": 4, "output": config["output"] + "-cached"}))
    worked = weights(train({**config, "output": config["output"] + "-2"}, "trainer.dataloader_num_workers=2"))
    for name, value in plain.items():
        torch.testing.assert_close(cached[name], value, rtol=1e-4, atol=1e-6)
        assert torch.equal(worked[name], value)


def test_a_topic_for_each_rank_or_one_for_all(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """As process 0 of 3 sees it, with nobody to tell the clusters to."""
    from rtk.retrieval.training import topics
    from rtk.retrieval.training.blocks import TopicSampling
    from rtk.retrieval.training.data import open_tables

    state = SimpleNamespace(num_processes=3, is_main_process=True, main_process_first=nullcontext)
    monkeypatch.setattr(topics, "PartialState", lambda: state)
    monkeypatch.setattr(topics, "broadcast_object_list", lambda values: values)
    loaded = load_config({**config, "evaluation": None})
    table = open_tables(loaded.data.parts())[0]
    for topic_per in ("batch", "rank"):
        block = TopicSampling(clusters=config["sampling"]["clusters"], topic_per=topic_per)
        sampler = topics.topic_sampler(table, block, 6, 0, 0)
        for number in range(20):
            topic = sampler.draw(number).rows.reshape(3, 2) % TOPICS
            assert (topic == topic[:, :1]).all()
            assert len(set(topic[:, 0])) == (3 if topic_per == "rank" else 1)


def test_a_mixture_has_clusters_of_each_collection(config: dict[str, Any], tmp_path: Path):
    data = config.pop("data")
    config["data"] = {"mixture": [{**data, "weight": 1}, {**data, "split": "dev", "weight": 2}]}
    config["sampling"] = {"clusters": 3}
    output = train({**config, "evaluation": None}, "trainer.max_steps=3")
    assert len(record(output)["sampling"]) == 2
    assert {path.name for path in output.glob("clusters*")} == {"clusters.txt.gz", "clusters-1.txt.gz"}


def test_published_pairs_train_as_their_runs_do(config: dict[str, Any], tmp_path: Path):
    """The same scores as a pair file: the same table but for the order of the entries, so that both train."""
    lines = []
    scores: dict[str, dict[str, float]] = {}
    for line in (tmp_path / "cat.run").read_text().splitlines():
        qid, _, doc, _, score, _ = line.split()
        scores.setdefault(qid, {})[doc] = float(score)
    for qid, found in scores.items():
        own = f"d{qid[1:]}"
        lines += [f"{found[own]}\t{score}\t{qid}\t{own}\t{doc}\n" for doc, score in found.items() if doc != own]
    path = tmp_path / "cat.tsv"
    path.write_text("".join(lines))
    config["data"] = {"collection": config["data"]["collection"], "pairs": str(path)}
    output = train({**config, "evaluation": None}, "trainer.max_steps=2")
    assert record(output)["data"][0]["negatives"] == 2 * SIZE


def test_a_teacher_that_misses_pairs_stops_the_training(config: dict[str, Any], tmp_path: Path):
    run = tmp_path / "cat.run"
    run.write_text("".join(line + "\n" for line in run.read_text().splitlines()[::2]))
    with pytest.raises(DataError, match="no score for 27 of 54"):
        train(config)


@pytest.mark.slow
@pytest.mark.parametrize("losses", [["margin-mse", "in-batch-margin-mse"], LIST_LOSSES])
def test_two_processes_end_at_the_weights_of_one(
    train_on_ranks: Callable[..., list[Path]], config: dict[str, Any], tmp_path: Path, losses: list[str]
):
    teacher = {"teacher": config["loss"][1]["teacher"]}
    config["loss"] = [{"name": name, "similarity": "dot", **(teacher if "in-batch" in name else {})} for name in losses]
    config |= {"sampling": {"clusters": 4}, "evaluation": None}
    outputs = train_on_ranks(
        config,
        6,
        environment=lambda processes: {"RTK_CACHE": str(tmp_path / f"cache-{processes}")},
        learning_rate=1e-3,
        max_steps=3,
        lr_scheduler_type="constant",
    )
    one, two = map(record, outputs)
    assert one["sampling"] == two["sampling"]
    expected, before = weights(outputs[0]), weights(Path(config["model"]))
    assert any((expected[name] - before[name]).abs().max() > 1e-4 for name in expected)
    for name, value in weights(outputs[1]).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
