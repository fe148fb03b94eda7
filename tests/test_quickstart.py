"""The quickstart: every step by the library's own functions, real files, losses shown as losses."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

pytest.importorskip("faiss")

from rtk import open_collection, progress, read_run
from rtk.errors import ConfigError, OutputExists
from rtk.eval import pydocs
from rtk.retrieval.quickstart import Plan, quickstart
from rtk.retrieval.quickstart_text import DECIDING, Quickstart, format_quickstart
from rtk.retrieval.search import Retriever

TEXTS = ["read the file", "write json", "sort the list", "merge query", "number of documents", "date and time",
         "iterator path", "cell protein", "gene study", "vitamin risk"]  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> tuple[Quickstart, list[str]]:
    folder = tmp_path_factory.mktemp("quickstart")
    data = folder / "toy"
    (data / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "title": text, "text": f"{text} {n}"} for n, text in enumerate(TEXTS)]
    queries = [{"_id": f"q{n}", "text": text} for n, text in enumerate(TEXTS)]
    for name, lines in (("corpus", documents), ("queries", queries)):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for split in ("train", "test"):
        rows = "".join(f"q{n}\td{n}\t1\n" for n in range(len(TEXTS)))
        (data / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    plan = Plan(collection=str(data), pairs=str(data), model=str(tiny_models / "dense"), steps=3, batch_size=4,
                k=8, depth=4)  # fmt: skip
    tasks: list[str] = []

    @contextmanager
    def listener(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
        tasks.append(description)
        yield lambda amount: None

    with progress.listen(listener):
        return quickstart(folder / "out", plan=plan), tasks


def test_every_file_is_there_and_opens(done: tuple[Quickstart, list[str]]) -> None:
    from sentence_transformers import SentenceTransformer

    summary = done[0]
    for what, path in summary.files:
        assert path.exists(), what
    for name in ("bm25", "dense", "fused", "reranked", "trained"):
        run = read_run(summary.out / "runs" / f"{name}.trec")
        assert len(run) == len(TEXTS)
    assert Retriever.open(summary.out / "trained").search(["read the file"], 3).rows.shape == (1, 3)
    assert SentenceTransformer(str(summary.out / "model")).encode("read").shape == (32,)
    assert "<html" in (summary.out / "report.html").read_text().lower()


def test_bm25_is_the_baseline_of_the_table(done: tuple[Quickstart, list[str]]) -> None:
    first, *others = done[0].rows
    assert (first.name, first.verdict, first.difference) == ("bm25", "baseline", None)
    assert [row.name for row in others] == ["dense", "fused", "reranked", "trained"]
    for row in others:
        assert row.difference == pytest.approx(row.means[DECIDING] - first.means[DECIDING])
        assert row.wins + row.ties + row.losses == done[0].queries
        assert row.verdict in {"better", "worse", "no difference shown"}


def test_table_agrees_with_the_report(done: tuple[Quickstart, list[str]]) -> None:
    report = json.loads((done[0].out / "report.json").read_text())
    means = {found["run"] if "run" in found else found["name"]: found for found in report["evaluations"]}
    assert set(means) == {row.name for row in done[0].rows}
    differences = {row["run"]: row for row in report["comparison"]["differences"]}
    for row in done[0].rows[1:]:
        assert differences[row.name]["p_fisher_holm"] == row.p
        assert differences[row.name]["verdict"] == row.verdict


def test_a_loss_is_shown_as_a_loss(done: tuple[Quickstart, list[str]]) -> None:
    """A model of random weights loses to BM25 where query and title are the same text."""
    summary = done[0]
    assert summary.rows[0].means[DECIDING] > 0.9
    lost = dataclasses.replace(summary.rows[1], difference=-0.25, low=-0.3, high=-0.2, p=0.00001, verdict="worse")
    text = format_quickstart(dataclasses.replace(summary, rows=(summary.rows[0], lost)))
    line = next(line for line in text.splitlines() if line.startswith("dense"))
    assert "-0.2500" in line
    assert "[-0.3000, -0.2000]" in line
    assert "<.0001" in line
    assert line.endswith("worse")


def test_effects_of_training_and_reranking_are_told_by_name(done: tuple[Quickstart, list[str]]) -> None:
    summary = done[0]
    means = {row.name: row.means[DECIDING] for row in summary.rows}
    for effect in summary.effects:
        assert effect.difference == pytest.approx(means[effect.after] - means[effect.before])
    assert [effect.what for effect in summary.effects] == ["training", "reranking"]
    lost = dataclasses.replace(summary.effects[0], difference=-0.1, low=-0.2, high=-0.05, p=0.001)
    text = format_quickstart(dataclasses.replace(summary, effects=(lost,)))
    assert "training (dense → trained): -0.1000 [-0.2000, -0.0500], p (Holm) 0.0010: a loss" in text


def test_reranked_run_is_the_fused_one_in_another_order(done: tuple[Quickstart, list[str]]) -> None:
    fused, reranked = (read_run(done[0].out / "runs" / f"{name}.trec") for name in ("fused", "reranked"))
    for entry in fused:
        assert set(reranked[entry.qid].documents) == set(entry.documents)
        assert set(reranked[entry.qid].documents[:4]) == set(entry.documents[:4])


def test_configuration_on_disk_is_the_one_that_was_trained(done: tuple[Quickstart, list[str]]) -> None:
    config = yaml.safe_load((done[0].out / "train.yaml").read_text())
    assert config["trainer"]["max_steps"] == 3
    assert config["data"]["split"] == "train"
    assert config["evaluation"] is None


def test_progress_names_the_whole_and_the_parts(done: tuple[Quickstart, list[str]]) -> None:
    assert done[1][0] == "quickstart"
    assert {"search", "train"} <= set(done[1])


def test_steps_are_timed_and_written_with_their_verbs(done: tuple[Quickstart, list[str]]) -> None:
    summary = done[0]
    verbs = [step.command.split()[1] for step in summary.steps if step.command]
    assert set(verbs) == {"index", "search", "fuse", "train", "rerank", "eval"}
    assert all(step.seconds >= 0 for step in summary.steps)
    assert summary.seconds == sum(step.seconds for step in summary.steps)
    text = format_quickstart(summary)
    for step in summary.steps:
        assert step.name in text
    assert str(summary.out / "report.html") in text


def test_last_lines_are_the_verbs_for_ones_own_collection(done: tuple[Quickstart, list[str]]) -> None:
    """They parse: the program knows every verb and option in them."""
    from typer.main import get_command

    from rtk.retrieval.cli.main import app

    commands = done[0].commands
    assert format_quickstart(done[0]).splitlines()[-len(commands) :] == [f"  {command}" for command in commands]
    known = get_command(app)
    for command in [*commands, *(step.command for step in done[0].steps if step.command)]:
        program, verb, *arguments = shlex.split(command)
        assert program == "rtk"
        options = {flag for each in known.commands[verb].params for flag in each.opts}
        assert {argument for argument in arguments if re.match(r"--?[a-z]", argument)} <= options, command


def test_output_that_is_there_is_refused(done: tuple[Quickstart, list[str]]) -> None:
    with pytest.raises(OutputExists):
        quickstart(done[0].out)


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="did not make"):
        quickstart(tmp_path, overwrite=True)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_record_says_what_was_done(done: tuple[Quickstart, list[str]]) -> None:
    record = json.loads((done[0].out / "quickstart.json").read_text())
    assert record["finished"] is True
    assert record["plan"]["steps"] == 3
    assert [row["name"] for row in record["rows"]] == [row.name for row in done[0].rows]


def test_default_plan_trains_on_documentation_only() -> None:
    config = Plan().training(Path("model"))
    assert config["data"] == {"collection": pydocs.PYDOCS_TRAIN, "split": "train"}
    assert "test" not in open_collection(pydocs.PYDOCS_TRAIN).splits
    assert Plan().collection == pydocs.PYDOCS
