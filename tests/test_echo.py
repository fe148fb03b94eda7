"""Echo encoders: what is pooled, what the head costs, and that a saved one loads again without guessing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rtk.errors import ConfigError  # noqa: E402
from rtk.retrieval.encoders import load_encoder  # noqa: E402
from rtk.retrieval.encoders.bidirectional import attend_both_ways  # noqa: E402
from rtk.retrieval.encoders.echo import EchoTransformer, make_echo  # noqa: E402
from rtk.retrieval.encoders.echo_template import EchoTemplate  # noqa: E402
from rtk.retrieval.encoders.pooled_head import largest_logits  # noqa: E402

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "sparse" / "echo_parser.json").read_text())
TEXTS = ["paris is the capital", "one", "wing flow in the heat of a query", ""]


def word_tokenizer(vocabulary):
    """Words and punctuation marks, numbered as the golden does."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    cut = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    cut.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=cut, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip


def saved(family, tokenizer, folder, **settings):
    """A folder with a random model of transformers' `family`."""
    import transformers

    config = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), **SIZES, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    """A folder with a two-layer random Llama over words."""
    words = ["Query", "Passage", "Same", "query", "passage", ":", *" ".join(TEXTS).split(), "file"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(["<unk>", "<s>", "</s>", *words]))}
    tokenizer = word_tokenizer(vocabulary)
    return Path(saved("Llama", tokenizer, tmp_path_factory.mktemp("causal"), bos_token_id=1, eos_token_id=2))


@pytest.fixture
def echo(causal):
    return make_echo(str(causal), device="cpu", document_length=12, query_length=8).eval()


# --- the template ---


@pytest.mark.parametrize("case", sorted(GOLDEN["cases"]))
def test_ids_and_masks_are_those_of_the_authors_parser(case):
    golden = GOLDEN["cases"][case]
    vocabulary = {"<unk>": 0} | {
        word: number
        for words, numbers in zip(golden["tokens"], golden["input_ids"], strict=True)
        for word, number in zip(words, numbers, strict=True)
    }
    tokenizer = word_tokenizer(vocabulary)
    length = None if case.endswith("None") else int(case.partition("=")[2])
    query = EchoTemplate.parse("{bos}Task:{prompt};\nInput:{text}\nSame input:{echo}{eos}")
    document = EchoTemplate.parse("{bos}Passage:{text}\nSame passage:{echo}{eos}")
    texts = ["capital of France", "Paris is the capital of France today"]
    found = [
        query.render(texts[:1], tokenizer, length=length, prompt="find passages"),
        document.render(texts[1:], tokenizer, length=length),
    ]
    for ours, theirs in (("input_ids", "input_ids"), ("attention_mask", "attention_mask"), ("pool_mask", "embed_mask")):
        for row, features in enumerate(found):
            mine = features[ours][0].tolist()
            padded = mine + [0] * (len(golden[theirs][row]) - len(mine))
            assert padded == golden[theirs][row], (ours, row)


def test_a_prompt_needs_its_place(causal):
    tokenizer = word_tokenizer({"<unk>": 0, "one": 1})
    with pytest.raises(ConfigError, match="a prompt is given"):
        EchoTemplate.parse("{echo}").render(["one"], tokenizer, length=3, prompt="one")


@pytest.mark.parametrize("bad", ["{bos}{text}", "{echo}{text}", "{text}{text}{echo}", "{ehco}", "{eos}{echo}"])
def test_bad_templates_are_refused(bad):
    with pytest.raises(ConfigError, match="template"):
        EchoTemplate.parse(bad)


def test_a_space_before_a_copy_goes_with_it():
    assert EchoTemplate.parse("{bos}Query: {text} x {echo}").pieces == (
        ("bos", ""), ("", "Query:"), ("text", " "), ("", " x"), ("echo", " "),
    )  # fmt: skip


def test_special_tokens_in_a_text_stay_text(echo):
    plain = echo.preprocess(["one"], task="document")["input_ids"]
    marked = echo.preprocess(["one </s>"], task="document")["input_ids"]
    assert (plain == 2).sum() == (marked == 2).sum() == 1


# --- what is pooled ---


def states_of(echo, text):
    module, features = echo[0], echo.preprocess([text], task="document")
    with torch.no_grad():
        states = module.model.get_decoder()(input_ids=features["input_ids"]).last_hidden_state[0]
    return states, features["pool_mask"][0].bool()


def test_the_second_copy_has_seen_the_first_ones_end(echo):
    first, mask = states_of(echo, "paris is the capital")
    second, again = states_of(echo, "paris is the file")
    assert torch.equal(mask, again)
    before = (~mask).nonzero()[:-3].ravel()  # the prompt and the first copy, without its last word and what follows
    assert torch.equal(first[before[:5]], second[before[:5]])
    assert not torch.allclose(first[mask][0], second[mask][0], atol=1e-3)  # "paris" again, the same word


def test_pooled_is_the_second_copy_and_the_closing_token(echo):
    features = echo.preprocess(["paris is the capital"], task="document")
    pooled = features["input_ids"][0][features["pool_mask"][0].bool()].tolist()
    assert echo.tokenizer.convert_ids_to_tokens(pooled) == ["paris", "is", "the", "capital", "</s>"]


def test_what_is_not_pooled_gives_nothing(echo, monkeypatch):
    """BOS is an attention sink with extreme logits: states outside the mask must never reach a weight."""
    features = echo.preprocess(TEXTS[:3], task="document")
    decoder = echo[0].model.get_decoder()
    with torch.no_grad():
        expected = echo[0](dict(features))["sentence_embedding"]
        states = decoder(input_ids=features["input_ids"], attention_mask=features["attention_mask"])
        states.last_hidden_state[~features["pool_mask"].bool()] = 1e4
        monkeypatch.setattr(type(decoder), "forward", lambda *_, **__: states)
        assert torch.equal(echo[0](dict(features))["sentence_embedding"], expected)


def test_a_batch_of_one_equals_the_padded_batch(echo):
    together = echo.encode_document(TEXTS, convert_to_sparse_tensor=False)
    alone = torch.stack([echo.encode_document([text], convert_to_sparse_tensor=False)[0] for text in TEXTS])
    assert torch.allclose(together, alone, atol=1e-6)
    assert (together[0] != together[1]).any()


def test_weights_are_the_largest_logits_of_pooled_positions(echo):
    features = echo.preprocess(TEXTS[:3], task="document")
    with torch.no_grad():
        logits = echo[0].model(input_ids=features["input_ids"], attention_mask=features["attention_mask"]).logits
        expected = (logits * features["pool_mask"][..., None]).relu().amax(dim=1).log1p()
        assert torch.allclose(echo[0](dict(features))["sentence_embedding"], expected, atol=1e-6)


def test_weights_are_float32_under_autocast(echo):
    features = echo.preprocess(TEXTS[:3], task="document")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = echo[0](dict(features))["sentence_embedding"]
    assert found.dtype == torch.float32
    weights = found[found > 0]
    logits = weights.expm1()  # of the head, in bfloat16
    assert torch.allclose(logits.bfloat16().float(), logits, rtol=1e-5, atol=1e-6)
    assert (weights != weights.bfloat16().float()).float().mean() > 0.5


def test_no_pooled_token_is_an_empty_vector(causal):
    bare = make_echo(str(causal), device="cpu", templates={"document": "{bos}Passage:{text}{echo}"})
    vectors = bare.encode_document(["one", ""], convert_to_sparse_tensor=False)
    assert vectors[0].any()
    assert not vectors[1].any()


def test_lengths_bound_each_copy(echo):
    features = echo.preprocess(["one " * 50], task="query")
    assert int(features["pool_mask"].sum()) == 8 + 1
    assert int((features["input_ids"] == echo.tokenizer.convert_tokens_to_ids("one")).sum()) == 16
    with pytest.raises(ConfigError, match="positions for 64"):
        echo.preprocess(["one " * 50], task="query", max_length=40)


def test_scaled_logits_and_the_double_logarithm(causal):
    plain = make_echo(str(causal), device="cpu")
    other = make_echo(str(causal), device="cpu", logit_scale=32**-0.25, activation_function="log1p_relu")
    first = plain.encode_document(TEXTS[:2], convert_to_sparse_tensor=False)
    second = other.encode_document(TEXTS[:2], convert_to_sparse_tensor=False)
    assert torch.allclose((first.expm1() * 32**-0.25).log1p().log1p(), second, atol=1e-6)


# --- the head ---


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("biased", [False, True])
def test_the_running_maximum_equals_the_direct_one_with_its_gradient(chunk, biased):
    generator = torch.Generator().manual_seed(chunk)
    states = torch.randn(3, 7, 5, generator=generator)
    weight, bias = torch.randn(11, 5, generator=generator), torch.randn(11, generator=generator) if biased else None
    valid = torch.tensor([[1] * 7, [1, 0, 1, 0, 0, 1, 0], [0] * 7], dtype=torch.bool)
    outer = torch.randn(3, 11, generator=generator)

    def run(function):
        leaves = [value.clone().requires_grad_() for value in (states, weight, *([bias] if biased else []))]
        weights = function(leaves[0], leaves[1], leaves[2] if biased else None).relu().log1p()
        (weights * outer).sum().backward()
        return [weights.detach(), *(leaf.grad for leaf in leaves)]

    direct = run(lambda s, w, b: torch.nn.functional.linear(s, w, b).masked_fill(~valid[..., None], -1e9).amax(dim=1))
    ours = run(lambda s, w, b: largest_logits(s, valid, w, b, chunk=chunk))
    for mine, expected in zip(ours, direct, strict=True):
        assert torch.allclose(mine, expected, atol=1e-6)


def test_the_head_never_makes_all_logits(monkeypatch):
    from rtk.retrieval.encoders import pooled_head

    widths = []
    linear = pooled_head.F.linear
    monkeypatch.setattr(pooled_head.F, "linear", lambda s, *rest: widths.append(s.shape[1]) or linear(s, *rest))
    states = torch.randn(2, 10, 4, requires_grad=True)
    largest_logits(states, torch.ones(2, 10, dtype=torch.bool), torch.randn(6, 4), chunk=4).sum().backward()
    assert widths == [4, 4, 2]  # forward only: nothing is computed a second time on the way back


def test_nan_is_not_hidden():
    states = torch.zeros(1, 3, 2)
    states[0, 1] = torch.nan
    assert largest_logits(states, torch.ones(1, 3, dtype=torch.bool), torch.ones(4, 2), chunk=1).isnan().all()


def test_gradients_of_the_whole_model_equal_those_through_its_own_logits(causal):
    def gradients(direct):
        echo = make_echo(str(causal), device="cpu").train()
        features = echo.preprocess(TEXTS[:3], task="document")
        if direct:
            logits = echo[0].model(input_ids=features["input_ids"], attention_mask=features["attention_mask"]).logits
            weights = logits.masked_fill(~features["pool_mask"].bool()[..., None], -1e9).amax(dim=1).relu().log1p()
        else:
            weights = echo[0](features)["sentence_embedding"]
        weights.square().sum().backward()
        return {name: value.grad for name, value in echo.named_parameters()}

    ours, expected = gradients(False), gradients(True)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(ours[name], value, atol=1e-4), name


def test_a_causal_model_of_another_library_pools_alike():
    golden = json.loads((Path(__file__).parent / "goldens" / "sparse" / "pooling.json").read_text())
    logits = torch.tensor(golden["inputs"]["logits_2x4x6"])
    mask = torch.tensor(golden["inputs"]["attention_mask"]).bool()
    found = largest_logits(logits, mask, torch.eye(6), chunk=3).relu().log1p()
    assert torch.allclose(found, torch.tensor(golden["tevatron_causal"]["pooling_strategy=max"]), atol=1e-6)
    double = torch.tensor(golden["opensearch"]["document use_l0=True,prune_ratio=None"])
    assert torch.allclose(found.log1p(), double, atol=1e-6)


# --- saved and loaded ---


def test_a_saved_encoder_loads_as_it_was(causal, tmp_path):
    templates = {"query": "{bos}Query:{text}\nSame:{echo}"}
    made = make_echo(
        str(causal), device="cpu", templates=templates, logit_scale=0.5, activation_function="log1p_relu",
        document_length=3, query_length=2,
    )  # fmt: skip
    made.save_pretrained(str(tmp_path / "echo"), create_model_card=False)
    again = load_encoder(tmp_path / "echo", device="cpu").model
    assert isinstance(again[0], EchoTransformer)
    assert again[0].get_config_dict() == made[0].get_config_dict()
    for encode in ("encode_query", "encode_document"):
        first = getattr(made, encode)(TEXTS, convert_to_sparse_tensor=False)
        assert torch.equal(getattr(again, encode)(TEXTS, convert_to_sparse_tensor=False), first)


def test_the_encoder_and_its_identity(causal, tmp_path, echo):
    echo.save_pretrained(str(tmp_path / "echo"), create_model_card=False)
    encoder = load_encoder(tmp_path / "echo", device="cpu")
    assert encoder.encode_document([]).shape == (0, encoder.dimension)
    found = encoder.encode_document(TEXTS).toarray()
    assert np.allclose(found, echo.encode_document(TEXTS, convert_to_sparse_tensor=False).numpy(), atol=1e-6)
    identity = encoder.identity
    assert (identity.kind, identity.pooling, identity.lengths) == ("sparse", "max", {"document": 12})
    other = make_echo(str(causal), device="cpu", document_length=12, templates={"document": "{bos}{echo}"})
    other.save_pretrained(str(tmp_path / "other"), create_model_card=False)
    assert load_encoder(tmp_path / "other", device="cpu").identity.fingerprint != identity.fingerprint


@pytest.mark.parametrize("way", [{"backend": "onnx"}, {"quantise": "int8"}])
def test_other_engines_are_refused(echo, tmp_path, way):
    echo.save_pretrained(str(tmp_path / "echo"), create_model_card=False)
    with pytest.raises(ConfigError, match="pooled positions only"):
        load_encoder(tmp_path / "echo", device="cpu", **way)


def test_words_at_the_start_of_a_text_are_warned_of(causal, tmp_path, caplog):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    cut = Tokenizer(models.BPE({"<unk>": 0, "a": 1, "Ġ": 2, "Ġa": 3}, [("Ġ", "a")], unk_token="<unk>"))
    cut.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    shutil.copytree(causal, tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=cut, unk_token="<unk>").save_pretrained(tmp_path / "model")
    make_echo(str(tmp_path / "model"), device="cpu", templates={"query": "a: {echo}"})
    assert caplog.text.count("no space before {echo}") == 1  # the document's


def test_plain_sentence_transformers_refuses_it_rather_than_guess(echo, tmp_path):
    from sentence_transformers import SparseEncoder

    echo.save_pretrained(str(tmp_path / "echo"), create_model_card=False)
    with pytest.raises(ValueError, match="trust_remote_code"):
        SparseEncoder(str(tmp_path / "echo"))


def test_a_model_that_sees_both_ways(causal, tmp_path):
    both = attend_both_ways(make_echo(str(causal), device="cpu", templates={"document": "{echo}"}))
    first, mask = states_of(both, "paris is the capital")
    second, _ = states_of(both, "paris is the file")
    assert not torch.allclose(first[mask][0], second[mask][0], atol=1e-3)
    both.save_pretrained(str(tmp_path / "both"), create_model_card=False)
    again = load_encoder(tmp_path / "both", device="cpu").model
    expected = both.encode_document(TEXTS[:2], convert_to_sparse_tensor=False)
    assert torch.equal(again.encode_document(TEXTS[:2], convert_to_sparse_tensor=False), expected)


def test_merged_adapters_give_the_same_vectors(causal):
    pytest.importorskip("peft")
    from rtk.retrieval.training.blocks import Lora
    from rtk.retrieval.training.lora import add_lora, merge_lora

    echo = make_echo(str(causal), device="cpu").eval()
    plain = echo.encode_document(TEXTS[:3], convert_to_sparse_tensor=False)
    add_lora(echo, Lora(rank=4, alpha=8))
    trained = [name for name, value in echo.named_parameters() if value.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)  # the head stays what it was
    with torch.no_grad():
        for name, value in echo.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    adapted = echo.eval().encode_document(TEXTS[:3], convert_to_sparse_tensor=False)
    assert not torch.allclose(adapted, plain, atol=1e-2)
    merge_lora(echo)
    assert torch.allclose(echo.encode_document(TEXTS[:3], convert_to_sparse_tensor=False), adapted, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Granite", {"logits_scaling": 8.0}),
        ("Cohere", {"logit_scale": 0.25}),
        ("Gemma2", {"head_dim": 8, "final_logit_softcapping": 3.0}),
    ],
)
def test_logits_are_scaled_and_capped_as_the_model_does_it(family, settings, echo, tmp_path):
    made = make_echo(saved(family, echo.tokenizer, tmp_path / "model", **settings), device="cpu").eval()
    made.save_pretrained(str(tmp_path / "echo"), create_model_card=False)
    features = made.preprocess(TEXTS[:3], task="document")
    with torch.no_grad():
        logits = made[0].model(input_ids=features["input_ids"], attention_mask=features["attention_mask"]).logits
        expected = logits.masked_fill(~features["pool_mask"].bool()[..., None], -1e9).amax(dim=1).relu().log1p()
        assert torch.allclose(made[0](dict(features))["sentence_embedding"], expected, atol=1e-6)
    again = load_encoder(tmp_path / "echo", device="cpu").encode_document(TEXTS[:3]).toarray()
    assert np.allclose(again, expected.numpy(), atol=1e-6)


def test_logits_scaled_in_another_way_by_the_same_name_are_refused(echo, tmp_path):
    folder = saved("HyperCLOVAX", echo.tokenizer, tmp_path / "model", logits_scaling=8.0)  # which multiplies
    with pytest.raises(ConfigError, match="more than its head"):
        make_echo(folder, device="cpu")


def test_a_model_whose_logits_are_more_than_its_head_is_refused(causal, monkeypatch):
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def scaled(self, *arguments, **settings):
        found = forward(self, *arguments, **settings)
        found.logits = found.logits / 8
        return found

    monkeypatch.setattr(LlamaForCausalLM, "forward", scaled)
    with pytest.raises(ConfigError, match="more than its head"):
        make_echo(str(causal), device="cpu")


def test_what_is_no_causal_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="causal language model"):
        make_echo(str(tmp_path / "nothing-here"))


def test_a_checkpoint_without_its_head_is_refused(causal, echo, tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers import LlamaModel

    shutil.copytree(causal, tmp_path / "headless")
    LlamaModel.from_pretrained(causal).save_pretrained(tmp_path / "headless")
    with pytest.raises(ConfigError, match=r"lacks weights of LlamaForCausalLM: lm_head\.weight"):
        make_echo(str(tmp_path / "headless"), device="cpu")
    echo.save_pretrained(str(tmp_path / "echo"), create_model_card=False)
    weights = load_file(tmp_path / "echo" / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "echo" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lm_head\.weight"):
        load_encoder(tmp_path / "echo", device="cpu")


def test_a_head_tied_to_the_embeddings_is_no_missing_one(causal, tmp_path):
    from transformers import LlamaModel

    shutil.copytree(causal, tmp_path / "tied")
    LlamaModel.from_pretrained(causal, tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    module = make_echo(str(tmp_path / "tied"), device="cpu")[0]
    assert module.head.weight is module.model.get_input_embeddings().weight


def test_an_index_of_it_is_searched(rtk, echo, beir_folder, tmp_path):
    echo.save_pretrained(str(tmp_path / "echo"), create_model_card=False)
    folder = beir_folder(corpus=[{"_id": str(n), "text": text} for n, text in enumerate(TEXTS[:3])], qrels={})
    code, _, err = rtk(f"index {folder} --retriever {tmp_path / 'echo'} --out found --quiet")
    assert code == 0, err
    code, out, _ = rtk("search found -q 'wing flow' --json --quiet")
    assert code == 0
    encoder = load_encoder(tmp_path / "echo", device="cpu")
    scores = (encoder.encode_query(["wing flow"]) @ encoder.encode_document(TEXTS[:3]).T).toarray()[0]
    assert [hit["id"] for hit in json.loads(out)["documents"]] == [str(n) for n in (-scores).argsort()]
