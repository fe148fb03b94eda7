"""Samples a second of our trainer beside sentence-transformers' own, with the same loss, model, texts and lengths.

    python benchmarks/train_speed.py DATA [--steps 20] [--rounds 3] [--batch 32] [--clock cpu]

DATA is a folder that holds `msmarco-mini` in BEIR layout: passages of differing length. In every round each trainer
starts from the same weights and takes the same number of steps over pairs (query, positive) with in-batch negatives,
MultipleNegativesRankingLoss there and `infonce` here; the figure is the median over rounds of the round's ratio. The
first step is not counted. Aims: 0.97, and 1.15 with batches of like length. The last two forms are in mixed precision,
which sentence-transformers' row is not: what a user gains by `bf16: true` on this processor.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback

from rtk.eval import open_collection
from rtk.retrieval.encoders import load_minilm_path
from rtk.retrieval.training import load_config, train
from rtk.retrieval.training.loops import Progress

QUERY, DOCUMENT = 32, 128


class Watch(TrainerCallback):
    """Seconds from the end of the first step to the end of the last."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.start, self.end = clock, 0.0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.start = self.clock()
        self.end = self.clock()


def theirs(options: argparse.Namespace, folder: Path, clock: Callable[[], float]) -> float:
    """sentence-transformers' trainer on the same pairs."""
    collection = open_collection(options.data / "msmarco-mini")
    queries, judgments = collection.queries("train"), collection.judgments("train")
    rows = [
        (queries.get(qid), collection.documents.texts(collection.documents.rows(judgments.relevant(qid)[:1]))[0])
        for qid in judgments.qids
        if judgments.relevant(qid)
    ]
    model = SentenceTransformer(str(load_minilm_path()), device="cpu")
    watch = Watch(clock)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=options.batch,
            max_steps=options.steps,
            learning_rate=2e-5,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            batch_sampler="no_duplicates",
        ),
        train_dataset=Dataset.from_dict({"query": [q for q, _ in rows], "positive": [d for _, d in rows]}),
        loss=MultipleNegativesRankingLoss(model),
        data_collator=SentenceTransformerDataCollator(
            preprocess_fn=model.preprocess,
            router_mapping={"query": "query", "positive": "document"},
            max_length={"query": QUERY, "document": DOCUMENT},
        ),
        callbacks=[watch],
    )
    trainer.train()
    return (options.steps - 1) * options.batch / (watch.end - watch.start)


def ours(
    options: argparse.Namespace, folder: Path, clock: Callable[[], float], *, grouped: bool = False, bf16: bool = False
) -> float:
    """rtk's, by a configuration."""
    watch, original = Watch(clock), Progress.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        watch.on_step_end(args, state, control)
        original(self, args, state, control, **kwargs)

    Progress.on_step_end = on_step_end  # type: ignore[method-assign]
    try:
        train(
            load_config(
                {
                    "method": "contrastive",
                    "model": "minilm",
                    "data": {"collection": str(options.data / "msmarco-mini")},
                    "lengths": {"query": QUERY, "document": DOCUMENT},
                    "sampling": {"group_by_length": grouped},
                    "trainer": {
                        "per_device_train_batch_size": options.batch,
                        "max_steps": options.steps,
                        "save_strategy": "no",
                        "use_cpu": True,
                        "bf16": bf16,
                    },
                    "output": str(folder / "model"),
                }
            )
        )
    finally:
        Progress.on_step_end = original  # type: ignore[method-assign]
    return (options.steps - 1) * options.batch / (watch.end - watch.start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    forms: dict[str, Callable[[Path], float]] = {
        "sentence-transformers": lambda folder: theirs(options, folder, clock),
        "rtk": lambda folder: ours(options, folder, clock),
        "rtk, like lengths": lambda folder: ours(options, folder, clock, grouped=True),
        "rtk, bf16": lambda folder: ours(options, folder, clock, bf16=True),
        "rtk, bf16 and like lengths": lambda folder: ours(options, folder, clock, grouped=True, bf16=True),
    }
    ratios: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(options.rounds):
        speeds = {}
        for name, run in forms.items():
            with tempfile.TemporaryDirectory() as folder:
                speeds[name] = run(Path(folder))
        for name, speed in speeds.items():
            ratios[name].append(speed / speeds["sentence-transformers"])
        print(f"round {number + 1}:", {name: round(speed, 1) for name, speed in speeds.items()}, flush=True)
    for name, values in ratios.items():
        print(f"{name:24} {statistics.median(values):.2f}x")


if __name__ == "__main__":
    main()
