"""Topic batches in sentence-transformers' own trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from rtk.errors import ConfigError, DataError
from rtk.retrieval.sampling import TopicBatches

TOPICS = 3
WORDS = ["file", "cell", "wing", "heat", "vitamin", "cancer", "json", "date", "path", "flow", "gene", "list"]


def rows(copies: int = 1) -> tuple[Dataset, np.ndarray]:
    """Twelve queries of three topics, each with `copies` positives; the first query has one more."""
    queries = [word for word in WORDS for _ in range(copies)] + WORDS[:1]
    positives = [f"{query} {number}" for number, query in enumerate(queries)]
    topics = np.array([WORDS.index(query) % TOPICS for query in queries])
    return Dataset.from_dict({"anchor": queries, "positive": positives}), topics


def made(topics: Any, dataset: Dataset, batch_size: int = 4, seed: int = 1, **given: Any) -> Any:
    return TopicBatches(topics, **given)(
        dataset, batch_size=batch_size, drop_last=False, valid_label_columns=None, generator=None, seed=seed
    )


@pytest.mark.parametrize("copies", [1, 3])
def test_a_batch_has_one_topic_and_no_query_twice(copies: int):
    dataset, topics = rows(copies)
    batches = list(made(topics, dataset))
    assert len(batches) == len(made(topics, dataset)) == len(dataset) // 4
    for batch in batches:
        assert len(batch) == 4
        assert len(set(topics[batch])) == 1
        assert len(set(dataset[batch]["anchor"])) == 4


def test_topics_that_are_too_small_are_topped_up_and_rows_without_one_never_come():
    dataset, topics = rows()
    topics[topics == 2] = -1
    sampler = made(topics, dataset, batch_size=6)
    seen = {row for epoch in range(8) for row in (sampler.set_epoch(epoch), *sampler)[1:] for row in row}
    assert all(len(batch) == 6 and len(set(batch)) == 6 for batch in sampler)
    assert {int(topics[row]) for row in seen} == {0, 1}
    two = made(topics, dataset, batch_size=4, clusters_per_batch=2)
    assert all(sorted(topics[batch]) == [0, 0, 1, 1] for batch in two)


def test_a_batch_is_a_function_of_seed_epoch_and_number():
    dataset, topics = rows(3)
    one, same, other = (made(topics, dataset, seed=seed) for seed in (1, 1, 2))
    first = list(one)
    assert first == list(same) != list(other)
    one.set_epoch(1)
    assert list(one) != first


def test_a_query_is_drawn_as_often_whatever_its_number_of_rows():
    dataset, topics = rows()
    sampler = made(topics, dataset, batch_size=2)
    drawn = []
    for epoch in range(600):
        sampler.set_epoch(epoch)
        drawn += [word for batch in sampler for word in dataset[batch]["anchor"]]
    shares = np.array([drawn.count(word) for word in WORDS]) / len(drawn)
    np.testing.assert_allclose(shares, 1 / len(WORDS), atol=0.015)
    assert (
        len({row for epoch in range(50) for batch in (sampler.set_epoch(epoch), *sampler)[1:] for row in batch}) == 13
    )


def test_the_trainer_of_sentence_transformers_takes_them(tiny_models: Path, tmp_path: Path):
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

    dataset, topics = rows()
    seen: list[set[int]] = []

    class Watching(MultipleNegativesRankingLoss):
        def forward(self, sentence_features: Any, labels: torch.Tensor) -> torch.Tensor:
            texts = self.model.tokenizer.batch_decode(
                next(iter(sentence_features))["input_ids"], skip_special_tokens=True
            )
            seen.append({WORDS.index(text) % TOPICS for text in texts})
            return super().forward(sentence_features, labels)

    model = SentenceTransformer(str(tiny_models / "dense"), device="cpu")
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "out"), per_device_train_batch_size=4, num_train_epochs=2, batch_sampler=TopicBatches(topics),
        use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    SentenceTransformerTrainer(model, arguments, train_dataset=dataset, loss=Watching(model)).train()
    assert len(seen) == 2 * (len(dataset) // 4)
    assert all(len(topic) == 1 for topic in seen)


def test_what_does_not_fit_is_refused():
    dataset, topics = rows(2)
    with pytest.raises(DataError, match="3 topics for a dataset of 25 rows"):
        made(topics[:3], dataset)
    with pytest.raises(DataError, match="'file' has rows in several topics"):
        made(np.arange(len(dataset)), dataset)
    with pytest.raises(ConfigError, match="12 different queries have a topic, a batch needs 16"):
        made(topics, dataset, batch_size=16)
