"""The reranker contract, held to by every reranker that there is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtk.errors import BackendError, ConfigError, DataError
from rtk.retrieval.rerankers import (
    Candidate,
    CrossEncoderReranker,
    MaxSimReranker,
    PredictReranker,
    Request,
    Reranker,
    Result,
    Usage,
    check_result,
    load_reranker,
    ranked_result,
    rerank_checked,
)
from rtk.retrieval.rerankers.maxsim import maxsim_scores

TEXTS = [
    "read a file",
    "sort a list of numbers",
    "the risk of cancer",
    "",
    "wing flow",
    "read a file",
    "é 日本",
    "heat",
]


def request_of(qid: str, query: str, texts: list[str], *, prefix: str = "d") -> Request:
    candidates = tuple(Candidate(f"{prefix}{place}", text, -float(place)) for place, text in enumerate(texts))
    return Request(qid, query, candidates)


class Words:
    """A pair scorer: words in common."""

    def predict(self, pairs):
        return [len(set(query.split()) & set(text.split())) for query, text in pairs]


@pytest.fixture(params=["predict", "cross-encoder", "maxsim dense", "maxsim multi-vector"])
def reranker(request: pytest.FixtureRequest) -> Reranker:
    """Every reranker; one more is one more line here."""
    if request.param == "predict":
        return PredictReranker(Words())
    if request.param == "cross-encoder":
        return CrossEncoderReranker(request.getfixturevalue("tiny_cross_encoder"), batch_tokens=64)
    kind = "tiny_dense" if request.param.endswith("dense") else "tiny_multi_vector"
    return MaxSimReranker(request.getfixturevalue(kind), batch_tokens=64)


class TestConformance:
    def test_is_a_reranker(self, reranker):
        assert isinstance(reranker, Reranker)

    def test_permutes_exactly_the_candidates_with_falling_scores(self, reranker):
        requests = [request_of("q1", "read numbers", TEXTS), request_of("q2", "cancer risk", TEXTS[::-1], prefix="é ")]
        results = rerank_checked(reranker, requests)  # refuses lost or invented ids and rising scores
        assert [result.qid for result in results] == ["q1", "q2"]
        assert all(result.usage.calls > 0 for result in results)

    def test_ties_keep_the_first_order(self, reranker):
        result = next(iter(reranker.rerank([request_of("q", "read", ["same text"] * 5)])))
        assert result.ids == ("d0", "d1", "d2", "d3", "d4")
        assert len(set(result.scores.tolist())) == 1

    def test_equal_texts_under_different_ids_both_stay(self, reranker):
        result = next(iter(reranker.rerank([request_of("q", "read a file", TEXTS)])))
        place = dict(zip(result.ids, result.scores.tolist(), strict=True))
        assert place["d0"] == pytest.approx(place["d5"], abs=1e-6)

    def test_no_candidates_and_one(self, reranker):
        empty, single = reranker.rerank([request_of("q1", "read", []), request_of("q2", "read", ["wing"])])
        assert (empty.ids, empty.scores.shape) == ((), (0,))
        assert single.ids == ("d0",)

    def test_no_requests(self, reranker):
        assert list(reranker.rerank([])) == []

    def test_empty_query(self, reranker):
        assert len(rerank_checked(reranker, [request_of("q", "", TEXTS)])[0].ids) == len(TEXTS)

    def test_same_input_same_output(self, reranker):
        requests = [request_of("q1", "read numbers", TEXTS)]
        first, second = (next(iter(reranker.rerank(requests))) for _ in range(2))
        assert first.ids == second.ids
        assert np.array_equal(first.scores, second.scores)

    def test_batch_composition_does_not_matter(self, reranker):
        requests = [request_of(f"q{place}", text or "none", TEXTS) for place, text in enumerate(TEXTS)]
        together = rerank_checked(reranker, requests)
        for request, result in zip(requests, together, strict=True):
            alone = rerank_checked(reranker, [request])[0]
            by_id = dict(zip(alone.ids, alone.scores.tolist(), strict=True))
            np.testing.assert_allclose(result.scores, [by_id[name] for name in result.ids], atol=2e-5)

    def test_order_of_candidates_matters_only_for_ties(self, reranker):
        request = request_of("q", "sort the numbers", TEXTS[:5])
        turned = Request("q", request.query, request.candidates[::-1])
        one, other = (rerank_checked(reranker, [each])[0] for each in (request, turned))
        scores = dict(zip(other.ids, other.scores.tolist(), strict=True))
        np.testing.assert_allclose(one.scores, [scores[name] for name in one.ids], atol=2e-5)


def test_candidate_ids_are_unique():
    with pytest.raises(DataError, match="'q1' has candidate 'd1' twice"):
        Request("q1", "x", (Candidate("d1", "a"), Candidate("d2", "b"), Candidate("d1", "c")))


def test_candidates_have_texts():
    with pytest.raises(DataError, match="'q1': the text of candidate 'd1' is None"):
        Request("q1", "x", (Candidate("d1", None),))  # pyright: ignore[reportArgumentType]


numbers = st.floats(-100, 100, width=32)


@settings(max_examples=200, deadline=None)
@given(st.lists(numbers, max_size=20))
def test_ranked_result_is_a_stable_descending_sort(values):
    request = request_of("q", "x", ["t"] * len(values))
    result = check_result(request, ranked_result(request, values))
    expected = sorted(range(len(values)), key=lambda row: (-np.float32(values[row]), row))
    assert result.ids == tuple(f"d{row}" for row in expected)
    assert result.raw.tolist() == [np.float32(values[row]) for row in expected]


GOOD = request_of("q", "x", ["a", "b", "c"])


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (Result("q", ("d0", "d1"), np.ones(2)), "1 lost .'d2'"),
        (Result("q", ("d0", "d1", "d2", "d9"), np.ones(4)), "1 invented .'d9'"),
        (Result("q", ("d0", "d1", "d1"), np.ones(3)), "1 repeated"),
        (Result("q", ("d0", "d1", "d2", "d2"), np.ones(4)), "1 repeated"),
        (Result("other", ("d0", "d1", "d2"), np.ones(3)), "'other'"),
        (Result("q", ("d2", "d1", "d0"), np.array([1, 2, 3])), "rises from 1.0 to 2.0 at rank 2"),
        (Result("q", ("d2", "d1", "d0"), np.array([3, np.nan, 1])), "score nan"),
        (Result("q", ("d2", "d1", "d0"), np.array([np.inf, 2, 1])), "score inf"),
        (Result("q", ("d2", "d1", "d0"), np.ones(2)), r"shape \(2,\)"),
        (Result("q", ("d2", "d1", "d0"), np.ones(3), np.array([1, np.nan, 0])), "'d1' is NaN"),
    ],
)
def test_results_that_break_the_contract_are_refused(result, said):
    with pytest.raises(BackendError, match=said):
        check_result(GOOD, result)


def test_one_result_for_each_request():
    class Forgetful:
        def rerank(self, requests):
            return iter(list(PredictReranker(Words()).rerank(requests))[1:])

    with pytest.raises(BackendError, match="1 results for 2 requests"):
        rerank_checked(Forgetful(), [GOOD, request_of("q2", "x", ["a"])])


def test_scores_that_are_not_finite_are_named():
    class Overflowing:
        def predict(self, pairs):
            return [1.0, float("nan"), 2.0]

    with pytest.raises(BackendError, match=r"'q'.*'d1' as nan"):
        list(PredictReranker(Overflowing()).rerank([GOOD]))


def test_usage_adds_up():
    assert Usage(1, 2, 3, 4, 5, 6) + Usage(10, 20, 30, 40, 50, 60) == Usage(11, 22, 33, 44, 55, 66)


class TestCrossEncoder:
    def test_scores_are_the_raw_logits(self, tiny_cross_encoder):
        import torch

        pairs = [("read numbers", text) for text in TEXTS]
        logits = tiny_cross_encoder.predict(pairs, activation_fn=torch.nn.Identity())
        squashed = tiny_cross_encoder.predict(pairs)
        result = next(iter(CrossEncoderReranker(tiny_cross_encoder).rerank([request_of("q", "read numbers", TEXTS)])))
        scores = dict(zip(result.ids, result.scores.tolist(), strict=True))
        np.testing.assert_allclose([scores[f"d{row}"] for row in range(len(TEXTS))], logits, atol=1e-5)
        assert np.abs(np.asarray(logits) - squashed).max() > 1e-3

    def test_batches_stay_within_the_token_budget(self, tiny_cross_encoder, monkeypatch):
        seen = []
        predict = tiny_cross_encoder.predict

        def watch(pairs, **settings):
            lengths = [len(tiny_cross_encoder.tokenizer(*pair)["input_ids"]) for pair in pairs]
            seen.append((len(pairs), max(lengths)))
            return predict(pairs, **settings)

        monkeypatch.setattr(tiny_cross_encoder, "predict", watch)
        texts = ["cell " * count for count in (1, 30, 2, 25, 3, 1, 1, 28)]
        reranker = CrossEncoderReranker(tiny_cross_encoder, batch_tokens=80)
        list(reranker.rerank([request_of("q1", "read", texts), request_of("q2", "gene cell", texts)]))
        assert sum(count for count, _ in seen) == 12, "pairs that are equal are one"
        assert all(count * width <= 80 for count, width in seen)
        assert max(count for count, _ in seen) > 4, "pairs of both queries share batches"

    def test_length_is_cut(self, tiny_cross_encoder):
        long = request_of("q", "read", ["cell " * 500 + "x", "cell " * 500 + "y"])
        result = next(iter(CrossEncoderReranker(tiny_cross_encoder, max_length=16).rerank([long])))
        assert result.scores[0] == result.scores[1]
        assert result.usage.prompt_tokens == 32

    def test_a_pair_that_is_too_long_loses_the_end_of_its_document(self, tiny_cross_encoder):
        """Never of its query: not even of one that is longer than the document."""
        import torch

        query = "read a file and sort a list of numbers"
        tokens = tiny_cross_encoder.tokenizer.tokenize
        assert 16 > len(tokens(query)) > len(tokens("cell gene wing flow risk of cancer")) > 5
        request = request_of("q", query, ["cell gene wing flow risk of cancer heat", "cell gene"])
        length = len(tokens(query)) + 3 + 4
        (result,) = CrossEncoderReranker(tiny_cross_encoder, max_length=length).rerank([request])
        shown = [(query, "cell gene wing flow"), (query, "cell gene")]
        assert len(tokens(shown[0][1])) == 4
        logits = tiny_cross_encoder.predict(shown, activation_fn=torch.nn.Identity())
        scores = dict(zip(result.ids, result.scores.tolist(), strict=True))
        np.testing.assert_allclose([scores["d0"], scores["d1"]], logits, atol=1e-5)
        assert result.usage.cut == 1

    def test_a_query_that_is_too_long_alone_leaves_a_quarter_to_the_document(self, tiny_cross_encoder):
        reranker = CrossEncoderReranker(tiny_cross_encoder, max_length=35)
        texts = ["wing " * 40, "flow " * 40, "heat"]
        (result,) = reranker.rerank([request_of("q", "cell " * 60, texts)])
        seen = request_of("q", "cell " * 24, ["wing " * 8, "flow " * 8, "heat"])
        (expected,) = CrossEncoderReranker(tiny_cross_encoder).rerank([seen])
        assert result.ids == expected.ids
        np.testing.assert_allclose(result.scores, expected.scores, atol=1e-5)
        assert len(set(result.scores.tolist())) == 3, "the document is seen"
        assert (result.usage.cut, result.usage.prompt_tokens) == (3, 35 + 35 + 28)

    def test_a_length_without_room_is_refused(self, tiny_cross_encoder):
        with pytest.raises(ConfigError, match="max_length 4: a pair has 3 tokens without query and document"):
            CrossEncoderReranker(tiny_cross_encoder, max_length=4)

    def test_models_with_a_chat_template_have_the_document_cut_too(self, tiny_llama):
        """Their pair is one text, at whose end the tokenizer would cut: here the query."""
        import torch
        from sentence_transformers import CrossEncoder
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.cross_encoder.modules import LogitScore

        network = Transformer(str(tiny_llama), transformer_task="text-generation")
        network.tokenizer.chat_template = (
            "{% for m in messages %}{% if m['role'] == 'document' %}About {{ m['content'] }}\n{% endif %}{% endfor %}"
            "{% for m in messages %}{% if m['role'] == 'query' %}Asked {{ m['content'] }}?{% endif %}{% endfor %}"
        )
        network.modality_config, network.module_output_name = network.infer_modalities(network.model, network.processor)
        model = CrossEncoder(modules=[network, LogitScore(5, 60)], device="cpu")
        texts = ["heat flow " * 60, "heat flow " * 90, "wing"]
        reranker = CrossEncoderReranker(model, max_length=100)
        flow, wing = reranker.rerank([request_of("q1", "flow", texts), request_of("q2", "wing", texts)])
        assert (flow.usage.cut, wing.usage.cut) == (2, 2)
        assert dict(zip(flow.ids, flow.scores, strict=True)) != dict(zip(wing.ids, wing.scores, strict=True))
        whole = model.predict([("flow", "wing")], activation_fn=torch.nn.Identity())
        assert flow.scores[flow.ids.index("d2")] == pytest.approx(float(whole[0]), abs=1e-4)
        scores = dict(zip(flow.ids, flow.scores.tolist(), strict=True))
        assert scores["d0"] == scores["d1"], "the same beginning is left of both"

    def test_two_labels_score_by_their_difference(self, tiny_models):
        import torch
        from sentence_transformers import CrossEncoder

        model = CrossEncoder(str(tiny_models / "bert"), num_labels=2, device="cpu")
        logits = model.predict([("read", text) for text in TEXTS[:3]], activation_fn=torch.nn.Identity())
        result = next(iter(CrossEncoderReranker(model).rerank([request_of("q", "read", TEXTS[:3])])))
        scores = dict(zip(result.ids, result.scores.tolist(), strict=True))
        np.testing.assert_allclose([scores[f"d{row}"] for row in range(3)], logits[:, 1] - logits[:, 0], atol=1e-5)

    def test_more_labels_need_a_choice(self, tiny_models):
        from sentence_transformers import CrossEncoder

        model = CrossEncoder(str(tiny_models / "bert"), num_labels=3, device="cpu")
        with pytest.raises(ConfigError, match=r"3 labels.*`label`"):
            CrossEncoderReranker(model)
        assert len(rerank_checked(CrossEncoderReranker(model, label=1), [GOOD])[0].ids) == 3


class TestMaxSim:
    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 4), st.lists(st.integers(0, 5), max_size=6), st.integers(0, 99))
    def test_formula(self, asked, lengths, seed):
        generator = np.random.default_rng(seed)
        query = generator.normal(size=(asked, 3)).astype(np.float32)
        documents = [generator.normal(size=(length, 3)).astype(np.float32) for length in lengths]
        expected = [
            sum(max(float(q @ d) for d in document) for q in query) if len(document) else -asked
            for document in documents
        ]
        np.testing.assert_allclose(maxsim_scores(query, documents), expected, atol=1e-4)

    def test_same_as_sentence_transformers(self, tiny_multi_vector):
        query, documents = "read the numbers", [text for text in TEXTS if text]
        expected = tiny_multi_vector.similarity(
            tiny_multi_vector.encode_query([query]), tiny_multi_vector.encode_document(documents)
        )[0]
        result = next(iter(MaxSimReranker(tiny_multi_vector).rerank([request_of("q", query, documents)])))
        scores = dict(zip(result.ids, result.scores.tolist(), strict=True))
        np.testing.assert_allclose([scores[f"d{row}"] for row in range(len(documents))], expected.numpy(), atol=1e-4)

    def test_padding_does_not_count(self, tiny_dense):
        """A short text beside a long one, whichever side is padded."""
        short, long = "read a file", "cell gene " * 20
        for side in ("right", "left"):
            tiny_dense.tokenizer.padding_side = side
            reranker = MaxSimReranker(tiny_dense)
            tokens, _ = reranker._encode([short, long], "document")
            alone, _ = reranker._encode([short], "document")
            assert len(tokens[0]) == 3, "without [CLS] and [SEP]"
            if side == "right":  # BERT's positions move under left padding, so only the count can be equal there
                np.testing.assert_allclose(tokens[0], alone[0], atol=1e-5)
            np.testing.assert_allclose(np.linalg.norm(tokens[0], axis=1), 1, atol=1e-5)

    def test_candidates_of_several_queries_are_encoded_once(self, tiny_dense, monkeypatch):
        reranker = MaxSimReranker(tiny_dense)
        encoded: list[str] = []
        embed = reranker._embed

        def watch(texts, task, limit, special):
            encoded.extend(texts if task == "document" else [])
            return embed(texts, task, limit, special)

        monkeypatch.setattr(reranker, "_embed", watch)
        results = list(reranker.rerank([request_of("q1", "read", TEXTS), request_of("q2", "list", TEXTS)]))
        assert sorted(encoded) == sorted(set(TEXTS))
        assert results[1].usage.cached_tokens > 0
        assert results[1].usage.calls == 1
        small = MaxSimReranker(tiny_dense, cache_megabytes=0)
        for one, other in zip(
            results, small.rerank([request_of("q1", "read", TEXTS), request_of("q2", "list", TEXTS)]), strict=True
        ):
            assert one.ids == other.ids

    def test_a_document_without_tokens_comes_last(self, tiny_dense):
        result = next(iter(MaxSimReranker(tiny_dense).rerank([request_of("q", "read a file", ["", "wing", "heat"])])))
        assert result.ids[-1] == "d0"

    def test_an_encoder_gives_its_model(self, tiny_dense):
        from rtk.retrieval import as_encoder

        direct, wrapped = MaxSimReranker(tiny_dense), MaxSimReranker(as_encoder(tiny_dense))
        request = request_of("q", "read a file", TEXTS)
        assert rerank_checked(wrapped, [request])[0].ids == rerank_checked(direct, [request])[0].ids

    def test_lengths_are_cut(self, tiny_dense):
        tokens, _ = MaxSimReranker(tiny_dense, document_length=6)._encode(["cell " * 30, "gene"], "document")
        assert [len(each) for each in tokens] == [4, 1], "six less [CLS] and [SEP]"

    def test_other_models_are_refused(self):
        with pytest.raises(ConfigError, match="got Words"):
            MaxSimReranker(Words())


class TestRegistry:
    def test_by_path(self, tiny_models):
        for name, folder in (("cross-encoder", "cross_encoder"), ("maxsim", "dense"), ("maxsim", "multi_vector")):
            loaded = load_reranker(name, tiny_models / folder, device="cpu", batch_tokens=128)
            assert len(rerank_checked(loaded, [GOOD])[0].ids) == 3
            assert loaded.identity()["fingerprint"]
        assert type(loaded.model).__name__ == "MultiVectorEncoder"

    def test_unknown_names_show_the_nearest(self):
        with pytest.raises(ConfigError, match=r"no reranker 'cross_encoder'.*did you mean 'cross-encoder'"):
            load_reranker("cross_encoder", "x")
        with pytest.raises(ConfigError, match=r"'max_len'.*did you mean 'max_length'"):
            load_reranker("cross-encoder", "x", max_len=3)

    def test_a_model_that_is_not_there(self, tmp_path):
        with pytest.raises(BackendError, match="cannot load"):
            load_reranker("cross-encoder", tmp_path / "none")

    def test_predict_lifts_an_object(self):
        assert rerank_checked(load_reranker("predict", Words()), [GOOD])[0].ids == ("d0", "d1", "d2")
        with pytest.raises(ConfigError, match="not a path"):
            load_reranker("predict", "somewhere")
