"""The training methods: each is a preset over the same blocks (data, sampling, loss, evaluation, trainer)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..losses.options import Family
from .blocks import Block, CropSampling, QuerySampling, RandomSampling, TokenSampling, TopicSampling
from .list_blocks import ListSampling

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """A preset.

    Attributes:
        name: what a configuration says under `method`.
        family: the kind of model it trains; it decides the trainer, the losses that fit and the layout of a batch.
        defaults: configuration values that hold where the user gives none.
        sampling: what can stand under `sampling`; `batches.make_sampler` makes the sampler from it.
        examples: what a batch holds (`batches.EXAMPLES`); None is the family's own.
        prepare: "module:function" in `rtk.retrieval`, called with (model, configuration) after loading; returns the
            model to train.
        finish: the same, called before the model is saved; returns the model to save.
        load: the same, called with (path, configuration) in place of the family's own way to load.
    """

    name: str
    family: Family
    defaults: Mapping[str, Any] = field(default_factory=dict)
    sampling: type[Block] = RandomSampling
    examples: str | None = None
    prepare: str | None = None
    finish: str | None = None
    load: str | None = None


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "contrastive",
            "bi-encoder",
            {
                "loss": [{"name": "infonce"}],
                "trainer": {"per_device_train_batch_size": 32, "learning_rate": 2e-5, "num_train_epochs": 1},
            },
        ),
        Method(
            "contriever",
            "bi-encoder",
            {
                "loss": [{"name": "moco"}],
                "trainer": {
                    "per_device_train_batch_size": 64,  # of the paper's 2048, on 32 devices
                    "learning_rate": 5e-5,
                    "adam_beta2": 0.98,
                    "adam_epsilon": 1e-6,
                    "weight_decay": 0.01,
                    "max_steps": 500_000,
                    "warmup_steps": 0.04,
                },
            },
            sampling=CropSampling,
            examples="crops",
        ),
        Method(
            "star",
            "bi-encoder",
            {
                "loss": [{"name": "star"}],
                "sampling": {"negatives": 1},
                "trainer": {
                    "per_device_train_batch_size": 32,
                    "learning_rate": 2e-5,
                    "num_train_epochs": 1,
                    "warmup_steps": 0.02,  # 1000 of the published 50,000 steps
                    "weight_decay": 0.01,
                    "max_grad_norm": 1.0,
                },
            },
        ),
        Method(
            "adore",
            "bi-encoder",
            {
                "loss": [{"name": "adore"}],
                "trainer": {
                    "per_device_train_batch_size": 32,
                    "learning_rate": 5e-6,
                    "num_train_epochs": 6,
                    "warmup_steps": 0.02,  # 2000 of MS MARCO's 94,000 steps
                    "weight_decay": 0.01,
                    "max_grad_norm": 1.0,
                },
            },
            sampling=QuerySampling,
            examples="queries",
            prepare="training.frozen:freeze_documents",
        ),
        Method(
            "cross-encoder",
            "cross-encoder",
            {
                "loss": [{"name": "binary-cross-entropy"}],
                "sampling": {"negatives": 7},
                "trainer": {"per_device_train_batch_size": 8, "learning_rate": 2e-5, "num_train_epochs": 1},
            },
        ),
        Method(
            "cet",
            "cross-encoder",
            {
                "lengths": {"query": 32, "document": 256},
                "head_dropout": 0.2,
                "loss": [{"name": "cet", "temperature": 10.0}],
                "sampling": {"negatives": 1},
                "trainer": {
                    "per_device_train_batch_size": 32,  # pairs: 64 sequences
                    "learning_rate": 3e-6,
                    "num_train_epochs": 1,
                    "warmup_steps": 10_000,
                    "weight_decay": 0.01,
                    "adam_epsilon": 1e-8,
                    "max_grad_norm": 1.0,
                },
            },
        ),
        Method(
            "masked-lm",
            "sparse-encoder",
            {
                "loss": [{"name": "masked-lm"}],
                "trainer": {
                    "per_device_train_batch_size": 32,
                    "learning_rate": 5e-4,  # of a head alone; 5e-5 suits all parameters
                    "weight_decay": 0.01,
                    "warmup_steps": 0.05,
                    "num_train_epochs": 1,
                },
            },
            sampling=TokenSampling,
            examples="masked-tokens",
            load="training.masked_lm:load_masked_lm",
            finish="training.masked_lm:save_as_sparse",
        ),
        Method(
            "splade",
            "sparse-encoder",
            {
                "lengths": {"query": 256, "document": 256},
                # SPLADE++ with negatives of BM25; with a teacher: margin-mse, and the weights of its publication
                "loss": [
                    {"name": "infonce", "against": "positives-and-own"},
                    {"name": "flops", "side": "query", "weight": 3e-4, "steps": 50_000},
                    {"name": "flops", "side": "document", "weight": 1e-4, "steps": 50_000, "grouping": "by-side"},
                ],
                "sampling": {"negatives": 1},
                "trainer": {
                    "per_device_train_batch_size": 32,  # of the published 128, on four devices
                    "learning_rate": 2e-5,
                    "weight_decay": 0.01,
                    "warmup_steps": 6000,
                    "max_steps": 150_000,
                },
            },
            finish="training.sparse_models:stock_modules",
        ),
        Method(
            "inference-free",
            "sparse-encoder",
            {
                "lengths": {"document": 256},
                "loss": [  # the paper's fine-tuning on MS MARCO; its T is not told, this is that of the authors' sample
                    {"name": "ensemble-kl"},
                    {
                        "name": "flops",
                        "weight": 0.02,
                        "steps": 10_000,
                        "grouping": "by-rank",
                        "convention": "opensearch",
                    },
                ],
                "sampling": {"negatives": 10},
                "trainer": {
                    "per_device_train_batch_size": 40,
                    "learning_rate": 2e-5,
                    "weight_decay": 0.01,
                    "warmup_steps": 6000,
                    "max_steps": 50_000,
                },
            },
            prepare="training.static_queries:look_up_queries",
            finish="training.static_queries:finish_queries",
        ),
        Method(
            "echo-splade",
            "sparse-encoder",
            {
                "lengths": {"query": 256, "document": 256},  # of each copy
                # Echo-Mistral-SPLADE tells no weights; these, and the learning rate, are LACONIC's
                "loss": [
                    {"name": "infonce"},
                    {"name": "flops", "side": "both", "weight": 1e-3, "steps": 100},
                ],
                "sampling": {"negatives": 15},
                "lora": {"rank": 16, "alpha": 8.0, "dropout": 0.1},
                "trainer": {"per_device_train_batch_size": 16, "learning_rate": 1e-4, "num_train_epochs": 1},
            },
            load="training.echo_models:load_echo_model",
            finish="training.sparse_models:stock_modules",
        ),
        Method(
            "first",
            "language-model",
            {
                "prompt": {"wording": "rank-zephyr", "identifiers": "letters", "words": 300, "double_bos": True},
                "loss": [{"name": "first"}],
                "sampling": {"window": 20},
                "trainer": {
                    "per_device_train_batch_size": 2,
                    "gradient_accumulation_steps": 16,  # on four devices: 128 lists a step
                    "learning_rate": 5e-6,  # published with 8-bit AdamW: optim: adamw_bnb_8bit
                    "weight_decay": 0.0,
                    "lr_scheduler_type": "cosine",
                    "warmup_steps": 50,
                    "num_train_epochs": 3,
                    "neftune_noise_alpha": 5.0,
                    "bf16": True,
                    "gradient_checkpointing": True,
                },
            },
            sampling=ListSampling,
        ),
        Method(
            "full-rank",
            "language-model",
            {
                # 100 words as at inference; published training cut to 100 tokens, its inference to 100 words
                "prompt": {"wording": "rank-zephyr", "identifiers": "numbers", "words": 100, "context": 32_768},
                "loss": [{"name": "full-rank"}],
                "sampling": {"window": 100},
                "trainer": {
                    "per_device_train_batch_size": 1,
                    "gradient_accumulation_steps": 8,  # on four devices: 32 lists a step
                    "learning_rate": 5e-6,
                    "lr_scheduler_type": "cosine",
                    "warmup_steps": 50,
                    "num_train_epochs": 4,
                    "neftune_noise_alpha": 5.0,
                    "bf16": True,
                    "gradient_checkpointing": True,
                },
            },
            sampling=ListSampling,
        ),
        Method(
            "yes-no",
            "cross-encoder",
            {
                "loss": [{"name": "yes-no"}],
                "sampling": {"negatives": 16},
                "lora": {"rank": 16},
                "trainer": {
                    "per_device_train_batch_size": 1,
                    "gradient_accumulation_steps": 8,
                    "learning_rate": 1e-4,
                    "num_train_epochs": 1,
                    "bf16": True,
                    "gradient_checkpointing": True,
                },
            },
            load="training.yes_no:load_yes_no",
        ),
        Method(
            "grpo",
            "policy",
            {
                # Rank-R1's first training: a positive and 19 others, LoRA, eight rollouts
                "prompt": {"words": None, "tokens": 512},
                "loss": [{"name": "grpo", "reward": "rank-r1"}],
                "sampling": {"window": 20, "start": "anywhere", "shuffle": 1.0},
                "lora": {"rank": 16, "alpha": 32, "dropout": 0.05},
                "trainer": {
                    "per_device_train_batch_size": 16,
                    "learning_rate": 1e-5,
                    "num_train_epochs": 1,
                    "bf16": True,
                    "gradient_checkpointing": True,
                },
            },
            sampling=ListSampling,
        ),
        Method(
            "rank-gpt",
            "language-model",
            {
                "prompt": {"wording": "rank-zephyr", "identifiers": "numbers", "words": 300},
                "loss": [{"name": "permutation"}],
                "sampling": {"window": 20},
                "trainer": {  # FIRST's, whose authors train their generative baseline so
                    "per_device_train_batch_size": 2,
                    "gradient_accumulation_steps": 16,
                    "learning_rate": 5e-6,
                    "weight_decay": 0.0,
                    "lr_scheduler_type": "cosine",
                    "warmup_steps": 50,
                    "num_train_epochs": 3,
                    "neftune_noise_alpha": 5.0,
                    "bf16": True,
                    "gradient_checkpointing": True,
                },
            },
            sampling=ListSampling,
        ),
        Method(
            "tas-balanced",
            "bi-encoder",
            {
                "lengths": {"query": 30, "document": 200},
                "loss": [
                    {"name": "margin-mse", "similarity": "dot"},
                    {"name": "in-batch-margin-mse", "similarity": "dot", "weight": 0.75},  # its teacher is the user's
                ],
                "trainer": {
                    "per_device_train_batch_size": 32,
                    "learning_rate": 7e-6,
                    "weight_decay": 0.0,  # with which the trainer's AdamW is the published Adam
                    "lr_scheduler_type": "cosine",
                    "max_grad_norm": 10000.0,
                    "max_steps": 850_000,
                },
            },
            sampling=TopicSampling,
        ),
    )
}
