"""What is said where a reranking cannot go on: which model was not found, on which query and document one failed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rtk.errors import BackendError, ConfigError
from rtk.eval.files import read_run
from rtk.retrieval.cli.rerank import HELP
from rtk.retrieval.rerankers import RERANKERS, Candidate, Request, load_language_model, load_reranker
from rtk.retrieval.rerankers.part import part_path

FAMILY = "yes-no"


# --- models ---


@pytest.mark.parametrize("name", ["DOES/NOT/EXIST", "./nowhere", "/no/such/folder", "~/model"])
def test_a_path_that_is_no_folder_is_said_to_be_none(name: str) -> None:
    for reranker, settings in ((FAMILY, {}), ("cross-encoder", {}), ("maxsim", {})):
        with pytest.raises(BackendError, match="there is no folder of that name") as caught:
            load_reranker(reranker, name, **settings)
        assert name in str(caught.value)
        assert "huggingface" not in str(caught.value)
        assert "Repo id" not in str(caught.value)


def test_a_name_that_the_hub_could_have_is_said_to_be_no_folder_either() -> None:
    with pytest.raises(BackendError, match=r"cannot load models/none .*no folder of that name, and the hub did not"):
        load_language_model("models/none")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("x")
    with pytest.raises(BackendError, match="this is a file, expected the folder"):
        load_language_model(tmp_path / "model.gguf")


@pytest.mark.parametrize("reranker", [FAMILY, "mono-t5", "icr", "cross-encoder"])
def test_the_embedded_encoder_is_no_model_for_these(reranker: str, rtk: Any, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"qid": "q", "query": "wing", "candidates": [{"docid": "d", "text": "heat"}]}\n')
    code, _, said = rtk(f"rerank c.jsonl -r {reranker} -m minilm --out x.trec")
    assert code == 2
    wanted = "cross-encoder" if reranker == "cross-encoder" else "language model"
    assert f"'minilm' is an encoder, which gives texts vectors, and no {wanted}" in said
    assert "maxsim" in said


@pytest.mark.parametrize(
    ("name", "said"), [("bert", "would be random"), ("bert-mlm", "a BertForMaskedLM is an encoder")]
)
def test_an_encoders_folder_is_no_language_model(name: str, said: str, tiny_models: Path) -> None:
    with pytest.raises(BackendError, match=rf"{name} is no language model: .*{said}"):
        load_language_model(str(tiny_models / name))


# --- failures ---


@pytest.fixture(scope="module")
def broken_on_wing(answer_tokenizer: Any) -> Any:
    """A language model that gives NaN for every prompt with the word "wing" in it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(answer_tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=2048, eos_token_id=answer_tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    (token,) = answer_tokenizer(" wing", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    return load_language_model((model, answer_tokenizer))


def requests() -> list[Request]:
    texts = {"q1": ["heat", "flow"], "q2": ["heat", "gene cell", "a wing", "flow"]}
    return [
        Request(qid, "cell", tuple(Candidate(f"{qid}-d{at}", text) for at, text in enumerate(each)))
        for qid, each in texts.items()
    ]


@pytest.mark.parametrize(
    ("name", "settings", "where"),
    [
        ("yes-no", {}, "query 'q2', document 'q2-d2': the model gave NaN"),
        ("graded", {"most": 2}, "query 'q2', document 'q2-d2': the model gave NaN"),
        ("query-likelihood", {}, "query 'q2', document 'q2-d2': the model gave NaN"),
        ("retro", {"max_new_tokens": 2, "samples": 2}, "query 'q2', document 'q2-d2': the model gave NaN"),
        (
            "prp",
            {"sorting": "all-pairs"},
            r"query 'q2', documents ('q2-d2' and 'q2-d.'|'q2-d.' and 'q2-d2'): the model gave NaN",
        ),
        ("first", {"window": 4, "step": 2}, "query 'q2': the model gave NaN"),
        ("rank-gpt", {"window": 4, "step": 2, "max_new_tokens": 2}, "query 'q2': the model gave NaN"),
        ("setwise", {}, "query 'q2': the model gave NaN"),
    ],
)
def test_a_logit_that_is_no_number_names_the_query_and_its_document(
    name: str, settings: dict[str, Any], where: str, broken_on_wing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    reranker = load_reranker(name, broken_on_wing, retries=0, **settings)
    good, bad = reranker.rerank(requests())
    assert good.error is None
    assert re.search(where, str(bad.error))
    assert "prompt " not in str(bad.error)
    assert re.search(where, caplog.text)  # of the call that both queries shared


def test_erank_names_the_document_whose_score_it_weighs(oracle_model: Callable[..., Any]) -> None:
    from rtk.retrieval.rerankers.language_model import PromptError

    model = oracle_model(write=lambda text, sample: "" if "grade 1" in text else "<answer>7</answer>")

    def fails(prompts: Any, continuations: Any, /) -> Any:
        raise PromptError(1, "the model gave NaN")

    model.continuation_log_probs = fails
    request = Request("q", "what?", tuple(Candidate(f"d{at}", f"grade {at}") for at in range(4)))
    (result,) = load_reranker("erank", model, retries=0).rerank([request])
    assert "query 'q', document 'd2': the model gave NaN" in str(result.error)  # d1 wrote no score to weigh


# --- stopping and counting ---


@pytest.fixture
def job(rtk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """`job(model, "options")`: rerank two queries by yes-no on the command line, in calls of one query."""

    def run(model: Any, options: str) -> tuple[int, str, str]:
        def load(_: Any, **settings: Any) -> Any:
            settings = {name: value for name, value in settings.items() if value is not None}
            return load_reranker(FAMILY, model, in_flight=1, retries=0, **settings)

        monkeypatch.setitem(RERANKERS, "ours", load)
        lines = [
            {
                "qid": qid,
                "query": f"what is {qid}?",
                "candidates": [{"docid": f"d{at}", "text": f"grade {at}"} for at in (1, 2)],
            }
            for qid in ("q1", "q2")
        ]
        (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return rtk(f"rerank c.jsonl -r ours -m any {options}")

    return run


def fails_on(*queries: str) -> Callable[[list[str]], None]:
    def fail(texts: list[str]) -> None:
        for query in queries:
            if any(f"what is {query}?" in text for text in texts):
                raise OSError(f"no answer for {query}")

    return fail


def test_a_query_is_said_to_keep_its_first_order_only_where_it_does(
    job: Callable[..., Any], oracle_model: Callable[..., Any]
) -> None:
    model = oracle_model(fail=fails_on("q2"))
    code, _, said = job(model, "--out stopped.trec")
    assert code == 1
    assert "query 'q2' could not be reranked: OSError: no answer for q2" in said
    assert "keeps its first order" not in said
    code, out, said = job(model, "--out counted.trec --on-error count")
    assert code == 0
    assert said.count("query 'q2' keeps its first order: OSError: no answer for q2") == 1
    assert "queries that failed and keep their first order: 1" in out


def test_evaluation_while_training_says_which_query_kept_its_order(
    oracle_model: Callable[..., Any], next_word: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    from rtk.eval.collection import open_collection
    from rtk.retrieval.training.evaluation import rerank_lists

    folder, path = next_word
    collection, run = open_collection(folder), read_run(path)
    broken = oracle_model(fail=fails_on_word)
    reranker = load_reranker(FAMILY, broken, in_flight=1, retries=0)
    found = rerank_lists(reranker, run, collection.queries("train"), collection)
    assert list(found["q3"].documents) == list(run["q3"].documents)
    assert caplog.text.count("keeps its first order") == 1
    assert "query 'q3' keeps its first order: OSError: broken" in caplog.text


def fails_on_word(texts: list[str]) -> None:
    if any("Query: vitamin" in text for text in texts):
        raise OSError("broken")


@pytest.mark.parametrize("suffix", ["trec", "parquet"])
def test_a_run_of_failures_alone_is_an_error_and_is_not_written(
    suffix: str, job: Callable[..., Any], oracle_model: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / f"out.{suffix}"
    broken = oracle_model(fail=fails_on("q1", "q2"))
    code, printed, said = job(broken, f"--out {shlex.quote(str(out))} --on-error count")
    assert code == 1
    assert printed == ""
    assert f"error: all 2 queries failed, so {out} was not written; the first, query 'q1': OSError: no answer" in said
    assert not out.exists()
    assert not part_path(out).exists()  # so that another model, or other settings, may be tried under the same name
    code, _, said = job(oracle_model(), f"--out {shlex.quote(str(out))} --on-error count")
    assert code == 0, said
    assert list(read_run(out)["q1"].documents) == ["d2", "d1"]


def test_failures_alone_leave_an_output_that_is_there(
    job: Callable[..., Any], oracle_model: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "out.trec"
    out.write_text("mine")
    broken = oracle_model(fail=fails_on("q1", "q2"))
    assert job(broken, "--out out.trec --on-error count --overwrite")[0] == 1
    assert out.read_text() == "mine"


# --- going on with other settings ---


def test_another_job_is_told_by_the_settings_that_differ(
    job: Callable[..., Any], oracle_model: Callable[..., Any]
) -> None:
    stopped = oracle_model(fail=fails_on("q2"))
    assert job(stopped, "--out out.trec")[0] == 1
    code, _, said = job(oracle_model(), "--out out.trec --set words=20 --set instruction=Judge. --depth 1")
    assert code == 2
    told = [line for line in said.splitlines() if line.startswith("  - ")]
    assert [line.split(":")[0] for line in told] == [
        "  - candidates", "  - depth", "  - reranker.prompt", "  - reranker.reading.words",
    ]  # fmt: skip
    assert told[1] == "  - depth: was 100, is now 1"
    assert told[3] == "  - reranker.reading.words: was 300, is now 20"
    assert all(len(line) < 250 for line in told)
    assert "Judge." in told[2]  # long values are shown from where they differ
    assert job(oracle_model(), "--out out.trec")[0] == 0


def test_a_setting_that_one_job_lacks(tmp_path: Path) -> None:
    from rtk.retrieval.rerankers.part import open_part

    path = tmp_path / "part.jsonl"
    before = {"depth": 3, "reranker": {"name": "a", "text": "x" * 400 + "old" + "y" * 400}}
    with open_part(path, before):
        pass
    now = {"depth": 3, "reranker": {"name": "a", "text": "x" * 400 + "new" + "y" * 400, "k": None}}
    with pytest.raises(ConfigError) as caught, open_part(path, now):
        pass
    first, second = caught.value.problems
    assert first == "reranker.k: was not there, is now None"
    assert re.fullmatch(r"reranker\.text: was …x+oldy+…, is now …x+newy+…", second)
    assert len(second) < 220


# --- help ---


def test_help_lists_every_reranker_and_no_other(rtk: Any) -> None:
    section = HELP[HELP.index("Rerankers:") : HELP.index("[dim]Examples")]
    first, *groups = [line for line in section.splitlines()[1:] if line]
    listed = {name.strip() for group in groups for name in group.partition(":")[2].split(",")}
    listed |= {part.split()[0] for part in first.split(";")[:2]}
    assert listed == set(RERANKERS) - {"predict"}  # which lifts an object, and is refused on the command line
    code, out, _ = rtk("rerank --help")
    assert code == 0
    assert all(name in out for name in listed)
