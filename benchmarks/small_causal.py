"""A small causal language model to try decoders with where none can be had: nothing is downloaded.

    python benchmarks/small_causal.py FOLDER [--layers 2] [--active 200] [--seed 0]
    rtk recipe run echo-mistral-splade --variant small model=FOLDER collection=nfcorpus

A Llama of random layers over the word pieces of all-MiniLM-L6-v2 (extra `minilm`), which nobody has pre-trained. Word
embeddings and head are that encoder's, centred and of one length, so that its states begin as the words they stand at,
and the head gives a word itself and its neighbours the largest logits. One dimension is a constant that lowers all
logits until about so many are above 0 at a position: a sparse encoder that is made of it begins sparse, with the text's
own words.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rtk.retrieval.encoders import load_minilm_path

HEADS = 6
SAMPLE = 500
POSITIONS = 512


def make_model(*, layers: int, active: int, seed: int) -> LlamaForCausalLM:
    """The model; `active` logits are above 0 on average where a state is a word's own embedding."""
    words = AutoModel.from_pretrained(load_minilm_path()).get_input_embeddings().weight.detach().float()  # (V, H)
    head = torch.nn.functional.normalize(words - words.mean(dim=0))
    size = head.shape[1]
    states = head * size**0.5  # 1 in every dimension, root mean square: what the random layers add is small beside it
    states[:, 0] = 1.0  # the constant
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(states), hidden_size=size, intermediate_size=2 * size, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=POSITIONS,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    head[:, 0] = 0.0
    logits = (states[torch.randperm(len(states))[:SAMPLE]] @ head.T).flatten()
    head[:, 0] = -logits.kthvalue(len(logits) - active * SAMPLE).values
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(states)
        model.get_output_embeddings().weight.copy_(head)
    return model


def main() -> None:
    """Write model and tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--active", type=int, default=200, help="logits above 0 at a position, on average")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    model = make_model(layers=chosen.layers, active=chosen.active, seed=chosen.seed)
    model.save_pretrained(chosen.folder)
    AutoTokenizer.from_pretrained(load_minilm_path()).save_pretrained(chosen.folder)
    print(f"{chosen.folder}: {sum(weight.numel() for weight in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
