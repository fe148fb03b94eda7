"""A random chat decoder to try and time LLM rerankers with where none can be had: nothing is downloaded.

    python benchmarks/small_chat.py FOLDER [--size tiny|small|1b|8b|t5|cross|minilm] [--dtype bfloat16] [--seed 0]
    rtk recipe run icr --variant small model=FOLDER collection=nfcorpus
    rtk recipe run prorank --variant small model=FOLDER collection=nfcorpus         # of minilm: it is trained

A Llama whose weights are random and whose tokenizer (byte pairs) learned its 4,000 tokens from Python's own help
texts; letters, numbers up to 100 and the words that rerankers are asked to answer are single tokens. It ranks at
random. Sizes: `tiny` is for trying (3 layers of 64), `small` is the reranking specification's (4 layers of 256), `1b`
and `8b` have the shapes of Llama 3's; `t5` is an encoder-decoder (2 and 2 layers of 64) with the same tokenizer, for
monoT5 and duoT5; `cross` is a cross-encoder of 3 layers of 64 over all-MiniLM-L6-v2's word pieces (extra `minilm`).

`minilm` is for training: all-MiniLM-L6-v2 (extra `minilm`) as a decoder of 512 tokens, where each position sees those
before it only, with its word embeddings as the head. It has not learned to write, and its word pieces know no capitals
and no spaces, so that it serves the rerankers that read logits (yes-no, ProRank, FIRST), not those that read a text.
"""

from __future__ import annotations

import argparse
import string
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

VOCABULARY = 4000
ANSWERS = ["Yes", "No", "yes", "no", "true", "false", "Passage", "Document"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|head|>{{ message['role'] }}<|/head|>\n"
    "{{ message['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|/head|>\n{% endif %}"
)
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "small": {
        "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 4, "initializer_range": 0.2,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}  # fmt: skip


def chat_tokenizer() -> Any:
    """The tokenizer, which can write any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    marks = ["<|begin|>", "<|head|>", "<|/head|>", "<|end|>", "<|pad|>"]
    singles = [*ANSWERS, *string.ascii_uppercase, *map(str, range(101))]
    often = "\n".join(singles) + "\n" + "".join(f" {each}" for each in singles)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=marks, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator([*(topics[name] for name in sorted(topics)), *[often] * 200], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=marks[0], eos_token=marks[3], pad_token=marks[4],
        additional_special_tokens=marks[1:3], chat_template=TEMPLATE, model_max_length=32_768,
    )  # fmt: skip


def chat_model(size: str, tokenizer: Any, *, seed: int = 0, dtype: str = "float32", device: str = "cpu") -> Any:
    """The decoder; it is made on `device`, so that a large one need not fit elsewhere first."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=32_768, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **SIZES[size],
    )  # fmt: skip
    usual = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            torch.manual_seed(seed)
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(usual)


def t5_model(tokenizer: Any, *, seed: int = 0) -> Any:
    """The encoder-decoder."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def cross_encoder(*, seed: int = 0) -> tuple[Any, Any]:
    """A random encoder with one score for a pair, and its tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from rtk.retrieval.encoders import load_minilm_path

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(load_minilm_path())
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_labels=1,
    )  # fmt: skip
    tokenizer.model_max_length = config.max_position_embeddings
    return BertForSequenceClassification(config).eval(), tokenizer


def minilm_decoder() -> tuple[Any, Any]:
    """all-MiniLM-L6-v2 as a causal language model, and its tokenizer with a chat template."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer, BertLMHeadModel

    from rtk.retrieval.encoders import load_minilm_path

    path = load_minilm_path()
    config = AutoConfig.from_pretrained(path)
    config.is_decoder, config.use_cache, config.tie_word_embeddings = True, True, True
    encoder = AutoModel.from_pretrained(path).state_dict()
    model = BertLMHeadModel(config).eval()
    model.bert.load_state_dict({name: value for name, value in encoder.items() if not name.startswith("pooler")})
    head = model.cls.predictions
    with torch.no_grad():
        head.transform.dense.weight.copy_(torch.eye(config.hidden_size))
        head.transform.dense.bias.zero_()
        head.bias.zero_()
    model.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = "[CLS]{% for message in messages %} {{ message['content'] }} [SEP]{% endfor %}"
    tokenizer.eos_token, tokenizer.model_max_length = "[SEP]", config.max_position_embeddings
    return model, tokenizer


def single_words(tokenizer: Any) -> list[str]:
    """Words that are one token behind a space, in a fixed order."""
    found = {text for text in tokenizer.get_vocab() if text[0] == "Ġ" and text[1:].isalpha() and text[1:].islower()}
    return sorted(text[1:] for text in found if len(text) > 3)


def main() -> None:
    """Write model and tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=[*SIZES, "t5", "cross", "minilm"], default="small")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.size == "minilm":
        model, tokenizer = minilm_decoder()
    elif chosen.size == "cross":
        model, tokenizer = cross_encoder(seed=chosen.seed)
    elif chosen.size == "t5":
        tokenizer = chat_tokenizer()
        model = t5_model(tokenizer, seed=chosen.seed)
    else:
        tokenizer = chat_tokenizer()
        model = chat_model(chosen.size, tokenizer, seed=chosen.seed, dtype=chosen.dtype)
    model.save_pretrained(chosen.folder)
    tokenizer.save_pretrained(chosen.folder)
    print(f"{chosen.folder}: {sum(weight.numel() for weight in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
