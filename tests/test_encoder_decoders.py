"""Rerankers on encoder-decoders: the prompt goes to the encoder, what the answer begins with to the decoder, as Setwise
and PRP were published with Flan-T5 and UPR with T0; and rerankers that cannot be asked of the other kind of model."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rtk.errors import ConfigError
from rtk.retrieval.rerankers import Candidate, Request, load_language_model, load_reranker, rerank_checked
from rtk.retrieval.rerankers.base import Usage
from rtk.retrieval.rerankers.language_model import Prompt, Sampling, is_encoder_decoder
from rtk.retrieval.rerankers.reading import PromptWriter, Reading

PAD, END, UNKNOWN = 0, 1, 2
REQUEST = Request("q", "wing", tuple(Candidate(f"d{at}", "heat flow " * (at + 1), -float(at)) for at in range(4)))


@pytest.fixture(scope="module")
def t5_tokenizer() -> Any:
    """As T5's: pieces that begin with a space's mark, line breaks read as spaces, the end token after every text and
    no chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["Passage", "true", "false", "Yes", "No", "wing", "heat", "flow", "Relevant"]
    pieces = [*words, *string.ascii_letters, *string.digits, *string.punctuation]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -100.0), ("▁", -9.0)]
    vocabulary += [(mark + piece, len(piece) - 8.0) for mark in ("", "▁") for piece in pieces]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=2048
    )


@pytest.fixture(scope="module")
def t5(t5_tokenizer: Any) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=len(t5_tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        decoder_start_token_id=PAD, eos_token_id=END, pad_token_id=PAD, initializer_factor=3.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_language_model((T5ForConditionalGeneration(config), t5_tokenizer))


class Watched:
    """A language model that notes what it is asked for logits, and what it answers."""

    encoder_decoder = True

    def __init__(self, model: Any) -> None:
        self.tokenizer, self.context_length, self.identity = model.tokenizer, model.context_length, model.identity
        self.generate, self.continuation_log_probs = model.generate, model.continuation_log_probs
        self._model, self.asked = model, list[tuple[Prompt, list[int], np.ndarray]]()

    def next_token_logits(self, prompts: Any, tokens: Any, /) -> Any:
        answers = self._model.next_token_logits(prompts, tokens)
        self.asked += [(prompt, list(tokens), row) for prompt, row in zip(prompts, answers.values, strict=True)]
        return answers


def decoded(t5: Any, prompt: Prompt, more: Any = ()) -> torch.Tensor:
    """(tokens, vocabulary) logits of T5 itself, one prompt alone."""
    given = [PAD, *prompt.begun, *more]
    with torch.inference_mode():
        ids = torch.tensor([prompt.ids])
        return t5.model(input_ids=ids, decoder_input_ids=torch.tensor([given])).logits[0].double()


# --- what the answer begins with ---


@pytest.mark.parametrize(
    ("name", "settings", "begins", "answers"),
    [
        ("setwise", {}, ["▁Passage"], ["▁A", "▁B", "▁C", "▁D"]),
        ("setwise", {"labels": "brackets"}, ["▁["], ["A", "B", "C", "D"]),
        ("prp", {}, ["▁Passage"], ["▁A", "▁B"]),
        ("first", {"window": 4, "step": 2}, ["▁["], ["A", "B", "C", "D"]),
        ("yes-no", {}, [], ["▁Yes", "▁No"]),
        ("graded", {"most": 2}, [], ["▁0", "▁1", "▁2"]),
        ("prorank", {}, [], ["▁1", "▁0"]),
        ("mono-t5", {}, [], ["▁true", "▁false"]),
        ("duo-t5", {}, [], ["▁true", "▁false"]),
    ],
)
def test_the_logits_are_those_behind_what_the_decoder_has_begun(
    name: str, settings: dict[str, Any], begins: list[str], answers: list[str], t5: Any
) -> None:
    model: Any = Watched(t5)
    (result,) = rerank_checked(load_reranker(name, model, template="plain", **settings), [REQUEST])
    assert result.error is None
    assert model.asked
    spoken = t5.tokenizer.convert_ids_to_tokens
    for prompt, tokens, values in model.asked:
        assert prompt.ids[-1] == END  # the encoder reads a whole text
        assert spoken(list(prompt.begun)) == begins
        assert spoken(tokens) == answers
        assert begins == [] or spoken(list(prompt.ids[-2:-1])) != begins
        np.testing.assert_allclose(values, decoded(t5, prompt)[-1, tokens].numpy(), atol=1e-3)


def test_the_document_that_setwise_names_is_the_one_that_t5_names(t5: Any) -> None:
    """As published: `<pad> Passage` to the decoder, and the likeliest label behind it."""
    asked = 'Given a query "wing", which of the following passages is the most relevant one to the query? '
    shown = " ".join(f'Passage {label}: "{each.text}"' for label, each in zip("ABCD", REQUEST.candidates, strict=True))
    text = f"{asked}{shown} Output only the passage label of the most relevant passage:"
    begun = Prompt(tuple(t5.tokenizer(text)["input_ids"]), begun=tuple(t5.tokenizer("Passage")["input_ids"][:-1]))
    labels = t5.tokenizer.convert_tokens_to_ids([f"▁{label}" for label in "ABCD"])
    best = int(decoded(t5, begun)[-1, labels].argmax())
    (result,) = rerank_checked(load_reranker("setwise", t5, template="plain", k=1), [REQUEST])
    assert result.ids[0] == f"d{best}"
    assert result.usage == Usage(1, len(begun) + len(begun.begun))


def test_the_likelihood_of_a_query_is_the_decoders(t5: Any) -> None:
    (result,) = rerank_checked(load_reranker("query-likelihood", t5, template="plain"), [REQUEST])
    query = t5.tokenizer("wing", add_special_tokens=False)["input_ids"]
    found = dict(zip(result.ids, result.scores.tolist(), strict=True))
    for each in REQUEST.candidates:
        text = f"Passage: {each.text} Please write a question based on this passage."
        steps = decoded(t5, Prompt(tuple(t5.tokenizer(text)["input_ids"])), query[:-1]).log_softmax(-1)
        expected = float(sum(steps[at, token] for at, token in enumerate(query)) / len(query))
        assert found[each.id] == pytest.approx(expected, abs=1e-4)


def test_answers_that_have_begun_to_different_lengths_share_a_call(t5: Any) -> None:
    texts = ["heat", "wing flow heat", "flow " * 9, "a b"]
    begins = [(), (7, 9), (12,), (5, 6)]
    prompts = [
        Prompt(tuple(t5.tokenizer(text)["input_ids"]), begun=begun) for text, begun in zip(texts, begins, strict=True)
    ]
    tokens = [20, 30, 40]
    found = t5.next_token_logits(prompts, tokens)
    expected = np.stack([decoded(t5, prompt)[-1, tokens].numpy() for prompt in prompts])
    np.testing.assert_allclose(found.values, expected, atol=1e-3)
    assert found.usage.prompt_tokens == sum(len(prompt.ids) + len(prompt.begun) for prompt in prompts)
    continuations = [[20, 21], [], [33], [9, 10, 11]]
    likely = t5.continuation_log_probs(prompts, continuations).values
    for prompt, more, value in zip(prompts, continuations, likely, strict=True):
        steps = decoded(t5, prompt, more).log_softmax(-1)[len(prompt.begun) :]
        assert value == pytest.approx(float(sum(steps[at, token] for at, token in enumerate(more))), abs=1e-3)
    written = t5.generate(prompts, Sampling(max_new_tokens=4)).values
    for prompt, answers in zip(prompts, written, strict=True):
        ids: list[int] = []
        while len(ids) < 4 and END not in ids:
            ids.append(int(decoded(t5, prompt, ids)[-1].argmax()))
        assert list(answers[0].ids) == ids


def test_an_answer_takes_no_room_from_the_prompt_and_goes_on_in_the_decoder(t5: Any, tiny_llama: Path) -> None:
    from rtk.retrieval.rerankers.language_model import Message

    writer = PromptWriter(t5, Reading(words=None, template="plain"))
    prompt = writer.write(["heat"], lambda shown: [Message("user", shown[0])], room=5000)
    assert not prompt.cut
    assert writer.followed(prompt, [7, 8]) == Prompt(prompt.ids, begun=(7, 8))
    decoder = PromptWriter(load_language_model(str(tiny_llama), device="cpu"))
    assert decoder.followed(Prompt((1, 2)), [7, 8]).ids == (1, 2, 7, 8)


# --- the other kind of model ---


@pytest.mark.parametrize(("name", "instead"), [("mono-t5", "yes-no"), ("duo-t5", "prp")])
def test_a_decoder_is_refused_with_the_reranker_that_asks_one(name: str, instead: str, tiny_llama: Path) -> None:
    model = load_language_model(str(tiny_llama), device="cpu")
    assert is_encoder_decoder(model) is False
    with pytest.raises(ConfigError, match=rf"(?s)'{name}'.*is a decoder without an encoder.*'{instead}'") as caught:
        load_reranker(name, model)
    assert str(tiny_llama) in str(caught.value)


def test_vllm_runs_decoders_only(tiny_llama: Path) -> None:
    from types import SimpleNamespace

    from rtk.retrieval.rerankers.engine_vllm import VllmModel

    config = SimpleNamespace(logprobs_mode="processed_logits", is_encoder_decoder=True, max_model_len=10)
    engine = SimpleNamespace(llm_engine=SimpleNamespace(model_config=config), get_tokenizer=lambda: None)
    with pytest.raises(ConfigError, match=r"bart is an encoder-decoder.*engine=transformers"):
        VllmModel(engine, dict, name="bart")
    config.is_encoder_decoder = False
    with pytest.raises(ConfigError, match="'mono-t5'"):
        load_reranker("mono-t5", VllmModel(engine, dict, name="llama"))
