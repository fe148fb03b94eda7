"""Listwise language models in training: what they read, what they pay, and that they learn, resume and stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rtk.errors import BackendError, ConfigError, DataError
from rtk.eval.files import write_run
from rtk.eval.run import Run
from rtk.retrieval.losses.context import LossContext
from rtk.retrieval.losses.modules import make_loss
from rtk.retrieval.rerankers.base import Candidate, Request
from rtk.retrieval.training.config import TrainConfig, load_config
from rtk.retrieval.training.kinds import EXAMPLES
from rtk.retrieval.training.language_models import list_reranker, list_writer
from rtk.retrieval.training.list_table import conversation_table
from rtk.retrieval.training.list_windows import Window
from rtk.retrieval.training.models import load_model
from rtk.retrieval.training.trainer import train

GOLDENS = Path(__file__).parent / "goldens" / "rerank"
WORDS = ["cell", "gene", "protein", "vitamin", "risk", "cancer", "study", "wing", "flow", "heat", "air", "list"]
COUNT = 6


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def toy(tmp_path: Path, beir_folder: Callable[..., Path]) -> Path:
    """Twelve queries of a word over twelve documents of a word; the right one is the next word, and stands anywhere in
    a list of five or six; `first.run` are the lists, `labels.run` their target order."""
    size = len(WORDS)
    folder = beir_folder(
        corpus=[{"_id": f"d{n}", "text": word} for n, word in enumerate(WORDS)],
        queries=[{"_id": f"q{n}", "text": word} for n, word in enumerate(WORDS)],
        qrels={split: [(f"q{n}", f"d{(n + 1) % size}", 1) for n in range(size)] for split in ("train", "dev")},
    )
    generator = np.random.default_rng(0)
    first, labels = [], []
    for n in range(size):
        others = generator.permutation([m for m in range(size) if m != (n + 1) % size])[: COUNT - 1]
        shown = generator.permutation([(n + 1) % size, *others[: COUNT - 1 - n % 2]]).tolist()
        falling = -np.arange(len(shown), dtype=np.float32)
        first.append((f"q{n}", [f"d{m}" for m in shown], falling))
        best = sorted(shown, key=lambda m, n=n: (m - n - 1) % size)
        labels.append((f"q{n}", [f"d{m}" for m in best], falling))
    write_run(Run.from_lists(first), tmp_path / "first.run")
    write_run(Run.from_lists(labels), tmp_path / "labels.run")
    return folder


@pytest.fixture
def config(toy: Path, tiny_llama: Path, tmp_path: Path) -> dict[str, Any]:
    run = str(tmp_path / "first.run")
    return {
        "method": "first",
        "model": str(tiny_llama),
        "data": {"collection": str(toy), "runs": {"first_stage": run, "labels": str(tmp_path / "labels.run")}},
        "sampling": {"window": COUNT},
        "trainer": {
            **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 3e-3},
            **{"max_steps": 6, "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "save_steps": 3},
            **{"warmup_steps": 0, "neftune_noise_alpha": None},
        },
        "output": str(tmp_path / "model"),
    }


def weights(output: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(output / "model.safetensors")


def record(output: Path) -> dict[str, Any]:
    return json.loads((output / "rtk-run.json").read_text())


def a_batch(config: TrainConfig, number: int = 0, slots: slice = slice(0, 4)) -> tuple[Any, dict[str, Any], Any]:
    """(model, collated batch, tables) of a configuration."""
    from rtk.retrieval.sampling import BatchKey
    from rtk.retrieval.training.batches import make_sampler

    kind = EXAMPLES["language-model"]
    tables = kind.open(config)
    sampler = make_sampler(tables, config.sampling, batch_size=4, seed=config.seed)
    examples = kind.examples(tables, sampler, texts=False)
    model = load_model(config)
    rows = examples.__getitems__(BatchKey(number, slots.start, slots.stop))
    return model, kind.collator(model, config)(rows), tables


def writer_of(config: TrainConfig) -> Any:
    return list_writer(load_model(config), config)


# --- what the model reads ---


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_training_reads_what_the_reranker_sends(config: dict, template: str, monkeypatch: pytest.MonkeyPatch):
    resolved = load_config({**config, "prompt": {"template": template, "words": 3}})
    model, batch, tables = a_batch(resolved)
    reranker = list_reranker(model, resolved)
    sent: list[Any] = []
    original = reranker._model.model.next_token_logits

    def listening(_: Any, prompts: Any, tokens: Any) -> Any:
        sent.extend(prompts)
        return original(prompts, tokens)

    monkeypatch.setattr(type(reranker._model.model), "next_token_logits", listening)
    label = batch["label"]
    writer = list_writer(model, resolved)
    for slot in range(4):
        row = next(row for row in range(len(tables[0])) if _shown(tables[0], row, writer) == _ids(batch, slot))
        window = tables[0].window(row, 0, slot, 0)
        candidates = tuple(Candidate(str(at), text) for at, text in enumerate(window.passages))
        list(reranker.rerank([Request("q", window.query, candidates)]))
        read = _ids(batch, slot)[: len(sent[-1].ids)]
        assert tuple(read) == sent[-1].ids  # up to the bracket and with it
        assert int(label["lengths"][slot]) == len(_ids(batch, slot)) - len(sent[-1].ids) + 1


def _shown(table: Any, row: int, writer: Any) -> list[int]:
    written = writer.write(table.window(row, 0, 0, 0))
    return [*written.prompt, *written.answer]


def _ids(batch: dict[str, Any], slot: int) -> list[int]:
    return batch["input_ids"][slot][batch["attention_mask"][slot].bool()].tolist()


@pytest.mark.parametrize("template", ["chat", "plain"])
@pytest.mark.parametrize("kind", ["letters", "numbers"])
def test_the_answer_is_tokenized_as_it_stands_in_the_whole(config: dict, template: str, kind: str):
    given = {"template": template, "identifiers": kind, "double_bos": False}
    resolved = load_config({**config, "method": "rank-gpt", "sampling": {"window": 12}, "prompt": given})
    writer = writer_of(resolved)
    order = (3, 10, 1, 0, 2, 11, 5, 4, 9, 8, 7, 6)
    window = Window("heat <|end|> flow", tuple(f"text [B] {n} <|head|>" for n in range(12)), order, -np.arange(12.0))
    written = writer.write(window)
    said = " > ".join(f"[{chr(65 + at) if kind == 'letters' else at + 1}]" for at in order)
    tokens = writer.tokenizer
    assert tokens.decode(written.answer[:-1]) == said
    assert written.answer[-1] == tokens.eos_token_id
    assert written.prompt.count(tokens.eos_token_id) == (2 if template == "chat" else 0)  # the template's own only
    whole = writer.writer.renderer.render(
        [*_messages(writer, window)], continuation=("\n" if template == "plain" else "") + said
    )
    assert whole.ids == written.prompt + written.answer[:-1]


def _messages(writer: Any, window: Window) -> Any:
    from rtk.retrieval.rerankers.prompts import passage_text

    return writer._prompt(window.query, [passage_text(text, 300) for text in window.passages], writer.identifiers)


def test_whose_identifier_a_token_writes(config: dict):
    resolved = load_config({**config, "method": "rank-gpt", "sampling": {"window": 12}})
    writer = writer_of(resolved)
    order = tuple(range(11, -1, -1))
    written = writer.write(Window("q", ("t",) * 12, order, -np.arange(12.0)))
    pieces: dict[int, str] = {}
    for token, number in zip(written.answer, written.numbers.tolist(), strict=True):
        pieces[number] = pieces.get(number, "") + writer.tokenizer.decode([token])
    assert [pieces[number].strip() for number in range(1, 13)] == [f"[{at + 1}]" for at in order]
    assert pieces[0] == " >" * 11 + writer.tokenizer.eos_token


def test_a_prompt_that_does_not_fit_is_cut_and_its_answer_is_whole(config: dict):
    resolved = load_config({**config, "prompt": {"context": 470, "words": None}})
    writer = writer_of(resolved)
    written = writer.write(Window("heat", ("flow " * 200,) * 3, (2, 0, 1), np.zeros(3, np.float32)))
    assert 400 < len(written.prompt) + len(written.answer) <= 470
    assert writer.writer.cut == 1
    with pytest.raises(ConfigError, match="needs"):
        writer_of(load_config({**config, "prompt": {"context": 100}})).write(
            Window("heat", ("flow",) * 3, (2, 0, 1), np.zeros(3, np.float32))
        )


# --- what it is trained on ---


def test_a_list_is_ordered_by_labels_a_teacher_or_judgments(config: dict, tmp_path: Path):
    labels = str(tmp_path / "labels.run")
    runs = config["data"]["runs"]
    by_label = _open(config, runs)
    by_teacher = _open(config, {"first_stage": runs["first_stage"], "teachers": [labels]})
    judged = _open(config, {"first_stage": runs["first_stage"]})
    assert np.array_equal(by_label.ranks, by_teacher.ranks)
    assert by_label.report.queries == len(WORDS)
    for row in range(len(WORDS)):
        shown = judged.window(row, 0, 0, 0)
        best = WORDS[(WORDS.index(shown.query) + 1) % len(WORDS)]
        assert shown.passages[shown.order[0]] == best
        assert list(shown.order[1:]) == sorted(shown.order[1:])  # the rest as the first stage has them
        assert sorted(shown.levels.tolist()) == [0.0] * (len(shown.passages) - 1) + [1.0]
        taught = by_label.window(row, 0, 0, 0)
        assert len(set(taught.levels.tolist())) == len(taught.passages)
        assert list(np.argsort(-taught.levels)) == list(taught.order)


def _open(config: dict, runs: dict, **data: Any) -> Any:
    given = {**config, "data": {"collection": config["data"]["collection"], "runs": runs, **data}}
    return EXAMPLES["language-model"].open(load_config(given))[0]


def test_documents_that_the_target_order_lacks_come_last_and_are_counted(config: dict, tmp_path: Path):
    runs = config["data"]["runs"]
    short = Run.from_lists([("q0", ["d1"], [1.0])])
    write_run(short, tmp_path / "short.run")
    table = _open(config, {**runs, "labels": str(tmp_path / "short.run")})
    assert list(table.ids) == ["q0"]
    assert table.report.without_order == len(WORDS) - 1
    shown = table.window(0, 0, 0, 0)
    assert shown.passages[shown.order[0]] == WORDS[1]
    assert table.report.unordered_documents == sum(COUNT - n % 2 for n in range(len(WORDS))) - 1


def test_shuffled_judgments_are_a_control(config: dict):
    runs = {"first_stage": config["data"]["runs"]["first_stage"]}
    right, wrong = _open(config, runs), _open(config, runs, shuffle_judgments=1)
    assert np.array_equal(right.entries, wrong.entries)
    assert not np.array_equal(right.ranks, wrong.ranks)
    assert right.levels.sum() == wrong.levels.sum()
    assert right.fingerprint != wrong.fingerprint


def test_windows_are_a_function_of_seed_and_step(config: dict):
    block = {"window": 4, "smallest": 2, "start": "anywhere", "shuffle": 0.5}
    _, first, tables = a_batch(load_config({**config, "sampling": block}), 5)
    _, again, _ = a_batch(load_config({**config, "sampling": block}), 5)
    _, other, _ = a_batch(load_config({**config, "sampling": block, "seed": 7}), 5)
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert first["input_ids"].shape != other["input_ids"].shape or not torch.equal(
        first["input_ids"], other["input_ids"]
    )
    drawn = [tables[0].windows.draw(np.arange(6), number, 0, 0) for number in range(60)]
    assert {len(each) for each in drawn} == {2, 3, 4}
    assert {int(each.min()) for each in drawn if len(each) == 4} == {0, 1, 2}
    assert any((np.diff(each) < 0).any() for each in drawn)
    assert any((np.diff(each) == 1).all() for each in drawn if len(each) == 4)


@pytest.fixture
def far(config: dict, tmp_path: Path, beir_folder: Callable[..., Path]) -> dict[str, Any]:
    """Three queries over 20 documents; what is relevant to q0 stands at rank 20, to q1 at rank 4, to q2 nowhere."""
    names = [f"d{n}" for n in range(20)]
    folder = beir_folder(
        name="far",
        corpus=[{"_id": name, "text": WORDS[n % len(WORDS)]} for n, name in enumerate(names)],
        queries=[{"_id": f"q{n}", "text": WORDS[n]} for n in range(3)],
        qrels={"train": [("q0", "d19", 1), ("q1", "d3", 1), ("q2", "d0", 0)]},
    )
    falling = -np.arange(20, dtype=np.float32)
    write_run(Run.from_lists((f"q{n}", names, falling) for n in range(3)), tmp_path / "far.run")
    return {**config, "data": {"collection": str(folder), "runs": {"first_stage": str(tmp_path / "far.run")}}}


@pytest.mark.parametrize(
    ("block", "reached"),
    [
        ({"window": 5}, ["q1"]),
        ({"window": 5, "smallest": 2}, ["q1"]),
        ({"window": 5, "start": "anywhere", "depth": 10}, ["q1"]),
        ({"window": 5, "start": "anywhere"}, ["q0", "q1"]),
        ({"window": 20}, ["q0", "q1"]),
    ],
)
def test_every_window_holds_something_better_and_lists_without_one_are_counted(far: dict, block: dict, reached: list):
    (table,) = EXAMPLES["language-model"].open(load_config({**far, "sampling": block}))
    assert list(table.ids) == reached
    assert table.report.without_order == 1  # q2
    assert table.report.out_of_reach == 2 - len(reached)
    assert any("no window shows" in line for line in table.report.lines()) == (len(reached) < 2)
    for row, _ in enumerate(reached):
        for number in range(12):
            window = table.window(row, number, 0, 0)
            assert window.levels.max() > window.levels.min()
            assert window.levels[window.order[0]] == 1
            assert len(window.passages) <= block["window"]


def test_lists_of_which_no_window_teaches_anything_are_refused_with_their_number(far: dict):
    with pytest.raises(DataError, match=r"no list to train on.*2 lists whose better documents no window shows"):
        EXAMPLES["language-model"].open(load_config({**far, "sampling": {"window": 2}}))


def test_a_shuffled_target_order_stays_where_windows_reach(far: dict):
    given = {**far, "sampling": {"window": 5}, "data": {**far["data"], "shuffle_judgments": 1}}
    (table,) = EXAMPLES["language-model"].open(load_config(given))
    assert list(table.ids) == ["q1"]
    assert sorted(table.window(0, 0, 0, 0).levels.tolist()) == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "[{", "not JSON"),
        ("b.json", '{"conversations": []}', "expected a JSON array"),
        ("c.jsonl", '{"conversations": []}\n[1]', r"c.jsonl:1: expected `conversations`"),
        ("d.jsonl", "[1]", r"d.jsonl:1: expected a JSON object"),
        ("e.jsonl", '{"conversations": ["x", 1, null]}', r"e.jsonl:1: expected `conversations`"),
    ],
)
def test_a_file_that_holds_something_else_is_refused_with_its_place(tmp_path: Path, name: str, text: str, said: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        conversation_table(str(tmp_path / name), 20)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("[B] > [A] > [C]", r"talk.jsonl:2: the answer orders 3 documents, sampling.window is 2"),
        ("[C] > [A]", r"talk.jsonl:2: the answer '\[C\] > \[A\]' is not a permutation of the first so many"),
    ],
)
def test_answers_that_training_cannot_take_are_refused_with_their_place(
    config: dict, tmp_path: Path, answer: str, said: str
):
    asked = [{"from": "system", "value": "s"}, {"from": "human", "value": "[A] x [B] y [C] z"}]
    talks = [{"conversations": [*asked, {"from": "gpt", "value": text}]} for text in ("[B] > [A]", answer)]
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    given = {**config, "sampling": {"window": 2}, "data": {"lists": str(path)}}
    with pytest.raises(DataError, match=said):
        train(load_config(given))


def test_a_file_of_permutations(config: dict, tmp_path: Path):
    lines = [{"qid": "q0", "initial_list": ["d1", "d2", "d3"], "final_list": ["d3", "d1", "d2"]},
             {"qid": "nowhere", "initial_list": ["d1"], "final_list": ["d1"]}]  # fmt: skip
    path = tmp_path / "lists.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = _open(config, {}, lists=str(path))
    assert table.window(0, 0, 0, 0).order == (2, 0, 1)
    assert table.report.outside_split == 1
    path.write_text(json.dumps({"qid": "q0", "initial_list": ["d1", "d2"], "final_list": ["d1", "d1"]}) + "\n")
    with pytest.raises(DataError, match="same ids") as caught:
        _open(config, {}, lists=str(path))
    assert caught.value.line == 1
    path.write_text(json.dumps({"qid": "q0", "initial_list": ["d1", "dx"], "final_list": ["dx", "d1"]}) + "\n")
    with pytest.raises(DataError, match="'dx'"):
        _open(config, {}, lists=str(path))


def test_a_file_of_conversations_trains_without_a_collection(config: dict, tmp_path: Path):
    goldens = json.loads((GOLDENS / "ranking_losses.json").read_text())["combined_objective"]["conversations"]
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in goldens * 2))
    output = train(load_config({**config, "data": {"lists": str(path)}}))
    assert record(output)["data"][0]["queries"] == 4
    path.write_text(json.dumps({"conversations": [*goldens[0]["conversations"][:2], {"from": "gpt", "value": "no"}]}))
    with pytest.raises(DataError, match="permutation"):
        train(load_config({**config, "data": {"lists": str(path)}}), overwrite=True)


def test_problems_of_a_configuration_are_told_at_once(config: dict):
    with pytest.raises(ConfigError) as caught:
        load_config(
            {**config, "data": {"collection": "c", "pairs": "x", "runs": {"pool": __file__}}, "lengths": {"query": 3},
             "pooling": "cls",
             "prompt": {"wording": "rank-zefyr"}, "sampling": {"window": 30}, "evaluation": {"collection": "c"}}
        )  # fmt: skip
    told = "\n".join(caught.value.problems)
    for part in (
        "first_stage: required",
        "data.runs.pool: the candidates are",
        "data.pairs",
        "lengths:",
        "pooling:",
        "rank-zephyr",
        "26 letters",
        "evaluation.run",
    ):
        assert part in told
    with pytest.raises(ConfigError, match=r"prompt: is for language models"):
        load_config({"method": "star", "model": "m", "data": {"collection": "c"}, "output": "o", "prompt": {}})


# --- training ---


@pytest.mark.parametrize("method", ["first", "full-rank"])
def test_training_learns_and_its_reranker_finds_the_right_order(config: dict, toy: Path, tmp_path: Path, method: str):
    config["trainer"] |= {"max_steps": 30, "per_device_train_batch_size": 12, "learning_rate": 1e-2, "save_steps": 30}
    evaluation = {"collection": str(toy), "run": str(tmp_path / "first.run"), "every": 30, "measure": "RR@10"}
    output = train(load_config({**config, "method": method, "evaluation": evaluation}))
    found = record(output)
    values = [entry["RR@10"] for entry in found["evaluations"]]
    assert values[-1] > values[0] + 0.2
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(output)
    assert AutoTokenizer.from_pretrained(output).chat_template


def test_an_interrupted_training_ends_as_an_undisturbed_one(
    config: dict, tmp_path: Path, interrupted: Callable[..., None]
):
    config["trainer"] |= {"neftune_noise_alpha": 5.0}
    config["sampling"] |= {"shuffle": 0.5, "smallest": 3}
    whole = train(load_config({**config, "output": str(tmp_path / "whole")}))
    interrupted(load_config(config), 4)
    resumed = train(load_config(config))
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


@pytest.mark.parametrize("method", ["first", "full-rank"])
def test_two_processes_train_as_one(config: dict, method: str, train_on_ranks: Callable[..., list[Path]]):
    """Lists have five or six documents: tokens are counted over both processes."""
    one, two = train_on_ranks({**config, "method": method}, 4, max_steps=3, learning_rate=0.05, max_grad_norm=0.0)
    ones, twos = weights(one), weights(two)
    assert any((value - weights(Path(config["model"]))[name]).abs().max() > 1e-3 for name, value in ones.items())
    for name, value in ones.items():
        torch.testing.assert_close(twos[name], value, atol=2e-5, rtol=1e-4)


def test_low_rank_adapters_train_and_are_merged(config: dict):
    pytest.importorskip("peft")
    output = train(load_config({**config, "lora": {"rank": 4, "target_modules": "all-linear"}}))
    before = weights(Path(config["model"]))
    after = weights(output)
    assert after.keys() == before.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any("q_proj" in name for name in changed)
    assert not any("embed" in name or "norm" in name for name in changed)


def test_a_loss_that_is_no_number_stops_the_training_with_its_queries(config: dict):
    with pytest.raises(BackendError, match=r"step \d.*q\d"):
        train(load_config({**config, "trainer": {**config["trainer"], "learning_rate": 1e30, "max_grad_norm": 0.0}}))


# --- the losses ---


def test_the_loss_reads_the_logits_that_the_reranker_orders_by(config: dict):
    resolved = load_config({**config, "sampling": {"window": COUNT, "shuffle": 0.5}})
    model, batch, tables = a_batch(resolved)
    model.eval()
    loss = make_loss("language-model", resolved.loss, LossContext(model, tables, resolved))
    label = batch.pop("label")
    with torch.no_grad():
        scores = loss.identifier_logits(loss._logits(model, batch, label["targets"].shape[1] + 1), label)
    reranker, sampler_rows = list_reranker(model, resolved), _rows(resolved, tables)
    for slot in range(4):
        window = tables[0].window(sampler_rows[slot], 0, slot, 0)
        candidates = tuple(Candidate(str(at), text) for at, text in enumerate(window.passages))
        (result,) = reranker.rerank([Request("q", window.query, candidates)])
        found = dict(zip(result.ids, result.raw.tolist(), strict=True))
        expected = scores[slot, : len(candidates)].tolist()
        assert [found[str(at)] for at in range(len(candidates))] == pytest.approx(expected, abs=1e-4)


def _rows(config: TrainConfig, tables: Any) -> list[int]:
    from rtk.retrieval.training.batches import make_sampler

    return make_sampler(tables, config.sampling, batch_size=4, seed=config.seed).draw(0).rows.tolist()


def test_padding_and_the_end_of_sequence_token_change_nothing(config: dict, monkeypatch: pytest.MonkeyPatch):
    resolved = load_config(config)
    model, batch, tables = a_batch(resolved)
    model.eval()
    loss = make_loss("language-model", resolved.loss, LossContext(model, tables, resolved))
    label = batch.pop("label")
    with torch.no_grad():
        terms = loss(model, batch, label)
        padded = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, loss.writer.tokenizer.eos_token_id)
        again = loss(model, {**batch, "input_ids": padded}, label)
        rows = [{name: value[at : at + 1] for name, value in batch.items()} for at in range(4)]
        single = [loss(model, row, {name: value[at : at + 1] for name, value in label.items()})
                  for at, row in enumerate(rows)]  # fmt: skip
    assert len(set(label["lengths"].tolist())) > 1
    for name, value in terms.items():
        assert float(value) == pytest.approx(float(again[name]), abs=1e-6)
    ranked = np.mean([float(each["first-rank"]) for each in single])
    assert float(terms["first-rank"]) == pytest.approx(ranked, abs=1e-5)
    counts = (label["targets"] != -100).sum(dim=1).numpy()
    generated = np.average([float(each["first-lm"]) for each in single], weights=counts)
    assert float(terms["first-lm"]) == pytest.approx(generated, abs=1e-5)


def test_an_answer_without_the_bracket_is_refused(config: dict):
    resolved = load_config(config)
    model, batch, tables = a_batch(resolved)
    loss = make_loss("language-model", resolved.loss, LossContext(model, tables, resolved))
    label = batch.pop("label")
    with pytest.raises(ConfigError, match="opening bracket"):
        loss(model, batch, {**label, "lengths": label["lengths"] - 1})
