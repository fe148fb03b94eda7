"""The sampler of TAS-Balanced from its configuration block."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ...errors import ConfigError
from ...ids import Ids
from ..sampling.clustering import KMeans, cluster_queries
from ..sampling.clusters import Clusters, read_clusters
from ..sampling.margin_balanced import PairSampler, pairs_of
from ..sampling.topic_aware import TopicAwareSampler
from ..sampling.topic_draws import TopicAware
from .blocks import TopicSampling
from .examples import TrainingTable

__all__ = ["topic_clusters", "topic_sampler"]

_LOG = logging.getLogger(__name__)


def topic_sampler(
    table: TrainingTable, block: TopicSampling, batch_size: int, seed: int, part: int
) -> TopicAwareSampler:
    """Batches as the block says. Clusters and margins are made by the main process.

    Args:
        batch_size: over all processes.
        part: the table's number in a mixture.
    """
    state = PartialState()
    with state.main_process_first():
        pairs = _pairs(table, block)
    settings = TopicAware(
        batch_size,
        seed,
        clusters_per_batch=block.clusters_per_batch,
        groups=state.num_processes if block.topic_per == "rank" else 1,
        deduplicate=block.deduplicate,
    )
    clusters = topic_clusters(table, block) if block.strategy in ("tas-balanced", "tas") else None
    return TopicAwareSampler(table, clusters, pairs, settings, part=part)


def _pairs(table: TrainingTable, block: TopicSampling) -> PairSampler:
    teachers = (block.teacher,) if isinstance(block.teacher, str) else block.teacher
    balanced = block.strategy in ("tas-balanced", "balanced")
    return pairs_of(table, "bins" if balanced else "random", teachers=teachers, bins=block.margin_bins)


def topic_clusters(table: TrainingTable, block: TopicSampling) -> Clusters:
    """The clusters of the table's queries, the same on every process: read or made by the first one, told to others.

    Raises:
        ConfigError: no encoder to cluster with, or fewer queries than clusters.
        DataError: see `read_clusters`.
    """
    state = PartialState()
    if state.num_processes == 1:
        return _clusters(table, block)
    told: list[Any] = [None]
    if state.is_main_process:
        made = _clusters(table, block)
        told = [(made.assignment(table.query_ids), len(made), made.unknown)]  # numbers: the others have the ids
    broadcast_object_list(told)
    assignment, count, unknown = told[0]
    inside = assignment >= 0
    ids = Ids(table.query_ids.take(inside.nonzero()[0]))
    return Clusters.from_assignment(ids, assignment[inside], count, unknown=unknown)


def _clusters(table: TrainingTable, block: TopicSampling) -> Clusters:
    if isinstance(block.clusters, str):
        found = read_clusters(Path(block.clusters), table.query_ids, unknown=block.unknown_queries)
        # in the order of the queries, whichever order the file had: processes and files agree on the members' order
        rows = table.query_ids.rows(found.ids)
        order = rows.argsort(kind="stable")
        ids = Ids(table.query_ids.take(rows[order]))
        found = Clusters.from_assignment(ids, found.numbers()[order], len(found), unknown=found.unknown)
        _LOG.info("%s: %s", block.clusters, found.sizes())
        return found
    if block.cluster_encoder is None:
        raise ConfigError("sampling.cluster_encoder: give an encoder whose vectors are clustered, or clusters: FILE")
    from ..encoders.load import load_encoder

    rows = table.queries
    texts = [table.query_texts[row] for row in rows.tolist()]
    settings = KMeans(
        block.clusters, metric=block.cluster_metric, iterations=block.cluster_iterations, seed=block.cluster_seed
    )
    return cluster_queries(table.query_ids.take(rows), texts, load_encoder(block.cluster_encoder), settings)
