"""Settings that no reranker can work with are refused when it is made, by name and value, not at its first query."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rtk.errors import ConfigError
from rtk.retrieval.rerankers import load_language_model, load_reranker
from rtk.retrieval.rerankers.families import FAMILIES, family_settings
from rtk.retrieval.rerankers.language_model import Sampling

WRITERS = sorted(name for name in FAMILIES if "max_new_tokens" in family_settings(name))


def test_the_rerankers_that_write_are_these() -> None:
    assert WRITERS == ["erank", "full-rank", "rank-gpt", "rank-r1", "retro"]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("length", [0, -3])
def test_an_answer_of_no_tokens(name: str, length: int, oracle_model: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=f"max_new_tokens {length}"):
        load_reranker(name, oracle_model(), max_new_tokens=length)


def test_a_permutation_is_written_with_the_length_that_was_asked_for(oracle_model: Callable[..., Any]) -> None:
    from rtk.retrieval.rerankers import Candidate, Request, rerank_checked

    model, asked = oracle_model(), list[Sampling]()
    write = model.generate

    def watched(prompts: Any, sampling: Sampling, /) -> Any:
        asked.append(sampling)
        return write(prompts, sampling)

    model.generate = watched
    request = Request("q", "what?", tuple(Candidate(f"d{at}", f"grade {at}") for at in range(3)))
    for length in (7, None):
        rerank_checked(load_reranker("rank-gpt", model, max_new_tokens=length), [request])
    assert asked[0] == Sampling(7)
    assert asked[1].min_new_tokens == asked[1].max_new_tokens > 7


@pytest.mark.parametrize("setting", ["batch_tokens", "context_length"])
@pytest.mark.parametrize("value", [0, -5, True, 2.5, "many"])
def test_sizes_of_an_engine(setting: str, value: Any, tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{setting} {value!r}: expected a whole number of at least 1"):
        load_language_model(str(tiny_llama), **{setting: value})
    with pytest.raises(ConfigError, match=rf"{setting} {value!r}"):
        load_reranker("yes-no", str(tiny_llama), yes="Y", no="N", **{setting: value})


@pytest.mark.parametrize("setting", ["batch_tokens", "context_length"])
def test_sizes_of_an_engine_over_a_loaded_model(setting: str, tiny_llama: Path, answer_tokenizer: Any) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    llama = load_language_model(str(tiny_llama), device="cpu")
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=len(answer_tokenizer), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
                 decoder_start_token_id=0)
    )  # fmt: skip
    for pair in ((llama.model, llama.tokenizer), (t5, answer_tokenizer)):  # type: ignore[attr-defined]
        with pytest.raises(ConfigError, match=rf"{setting} 0"):
            load_language_model(pair, **{setting: 0})


def test_every_wrong_size_is_told_and_vllm_is_not_started_for_it(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_language_model(str(tiny_llama), batch_tokens=0, context_length=-5)
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="context_length -5"):  # where it is not installed too
        load_language_model(str(tiny_llama), engine="vllm", context_length=-5)


@pytest.mark.parametrize(
    ("name", "model", "settings", "said"),
    [
        ("cross-encoder", "cross_encoder", {"batch_tokens": 0}, "batch_tokens 0"),
        ("cross-encoder", "cross_encoder", {"max_length": 0}, "max_length 0"),
        ("cross-encoder", "cross_encoder", {"group_pairs": -1}, "group_pairs -1"),
        ("cross-encoder", "cross_encoder", {"label": 1}, "labels are 0 to 0"),
        ("maxsim", "multi_vector", {"batch_tokens": 0}, "batch_tokens 0"),
        ("maxsim", "multi_vector", {"query_length": 0}, "query_length 0"),
        ("maxsim", "multi_vector", {"document_length": -2}, "document_length -2"),
        (
            "maxsim",
            "multi_vector",
            {"cache_megabytes": -1},
            "cache_megabytes -1: expected a whole number of at least 0",
        ),
    ],
)
def test_sizes_of_the_other_rerankers(
    name: str, model: str, settings: dict[str, Any], said: str, tiny_models: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_reranker(name, str(tiny_models / model), **settings)
    load_reranker(name, str(tiny_models / model), batch_tokens=1, device="cpu")


def test_calls_of_no_pairs() -> None:
    with pytest.raises(ConfigError, match="batch_pairs 0"):
        load_reranker("predict", object(), batch_pairs=0)


@pytest.mark.parametrize("setting", ["max_new_tokens=0", "context_length=-5", "batch_tokens=0"])
def test_the_command_line_says_so_before_anything_is_read(setting: str, rtk: Any, tiny_llama: Path, tmp_path: Path):
    line = '{"qid": "q", "query": "wing", "candidates": [{"docid": "d", "text": "heat"}]}\n'
    (tmp_path / "c.jsonl").write_text(line)
    code, _, said = rtk(f"rerank c.jsonl -r rank-gpt -m {tiny_llama} --set {setting} --out x.trec --on-error count")
    assert code == 2
    assert setting.replace("=", " ") in said
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("x.trec")) == []
