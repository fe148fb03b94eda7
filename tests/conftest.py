"""Fixtures that several test modules share."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest


# --- tiny random models: real classes of sentence-transformers over a two-layer BERT of random weights ---

_WORDS = (
    "the of and in to a is for with on by as that are from file read write list sort merge text cell protein gene "
    "vitamin risk cancer study wing flow heat air query document string number time date json iterator path"
)


def _tiny_tokenizer() -> Any:
    from transformers import BertTokenizerFast

    letters = [*string.ascii_lowercase, *string.digits]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokens += [*string.punctuation, *_WORDS.split()]
    return BertTokenizerFast(vocab={token: number for number, token in enumerate(dict.fromkeys(tokens))})


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of saved tiny random models (hidden 32, two layers, at most 128 tokens, own word pieces): `dense`
    (mean pooling, normalised), `sparse` (SPLADE), `multi_vector` (16 dimensions), `cross_encoder` (one logit), and
    the plain transformers they stand on (`bert`, `bert-mlm`)."""
    torch = pytest.importorskip("torch")
    from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from sentence_transformers.sentence_transformer.modules import Pooling
    from sentence_transformers.sparse_encoder.modules import SpladePooling
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

    folder = tmp_path_factory.mktemp("tiny-models")
    tokenizer = _tiny_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.2,
        num_labels=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kinds = {"bert": BertModel, "bert-mlm": BertForMaskedLM, "bert-classifier": BertForSequenceClassification}
        for name, kind in kinds.items():
            kind(config).save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
        bert = str(folder / "bert")
        mlm = Transformer(str(folder / "bert-mlm"), transformer_task="fill-mask")
        project = Dense(
            32,
            16,
            bias=False,
            activation_function=torch.nn.Identity(),
            module_input_name="token_embeddings",
            module_output_name="token_embeddings",
        )
        models = {
            "dense": SentenceTransformer(
                modules=[Transformer(bert), Pooling(32, "mean"), Normalize()], similarity_fn_name="cosine"
            ),
            "sparse": SparseEncoder(modules=[mlm, SpladePooling("max")], similarity_fn_name="dot"),
            "multi_vector": MultiVectorEncoder(
                modules=[Transformer(bert), project, MultiVectorMask(), Normalize("token_embeddings")]
            ),
            "cross_encoder": CrossEncoder(str(folder / "bert-classifier")),
        }
    for name, model in models.items():
        model.save_pretrained(str(folder / name), create_model_card=False)
    return folder


@pytest.fixture
def tiny_dense(tiny_models: Path) -> Any:
    """A fresh tiny SentenceTransformer: 32 dimensions, mean pooling, normalised."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(tiny_models / "dense"), device="cpu")


@pytest.fixture
def tiny_sparse(tiny_models: Path) -> Any:
    """A fresh tiny SparseEncoder (SPLADE max pooling)."""
    from sentence_transformers import SparseEncoder

    return SparseEncoder(str(tiny_models / "sparse"), device="cpu")


@pytest.fixture
def tiny_multi_vector(tiny_models: Path) -> Any:
    """A fresh tiny MultiVectorEncoder: 16 dimensions a token."""
    from sentence_transformers import MultiVectorEncoder

    return MultiVectorEncoder(str(tiny_models / "multi_vector"), device="cpu")


@pytest.fixture
def tiny_cross_encoder(tiny_models: Path) -> Any:
    """A fresh tiny CrossEncoder with one logit."""
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(tiny_models / "cross_encoder"), device="cpu")
