"""Which examples share a batch. A batch is a pure function of (seed, step)."""

from __future__ import annotations

from .base import BatchKey, BatchSampler, Draw, Sampler
from .clustering import KMeans, cluster_queries, cluster_vectors
from .clusters import Clusters, read_clusters, write_clusters
from .mixture import MixtureSampler
from .shuffled import ShuffledSampler
from .topic_aware import TopicAwareSampler
from .topic_batches import TopicBatches

__all__ = [
    "BatchKey",
    "BatchSampler",
    "Clusters",
    "Draw",
    "KMeans",
    "MixtureSampler",
    "Sampler",
    "ShuffledSampler",
    "TopicAwareSampler",
    "TopicBatches",
    "cluster_queries",
    "cluster_vectors",
    "read_clusters",
    "write_clusters",
]
