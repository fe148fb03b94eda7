"""Batches of one topic: full, a function of the number, by cluster uniformly, topped up, and without copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from rtk.errors import ConfigError
from rtk.ids import Ids
from rtk.retrieval.sampling import BatchSampler, Clusters, Draw, MixtureSampler, TopicAwareSampler, read_clusters
from rtk.retrieval.sampling.margin_balanced import pairs_of
from rtk.retrieval.sampling.streams import NumberedStream
from rtk.retrieval.sampling.topic_draws import TopicAware

SIZES = (12, 6, 3, 1, 9)  # of the clusters
QUERIES = sum(SIZES)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))


def clusters_of(sizes: tuple[int, ...] = SIZES) -> Clusters:
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    return Clusters.from_assignment(Ids([f"q{n}" for n in range(len(numbers))]), numbers, len(sizes))


@pytest.fixture
def table(scored_table: Callable[..., Any]) -> Any:
    generator = np.random.default_rng(0)
    return scored_table([([8.0], generator.normal(2, 2, 3).tolist()) for _ in range(QUERIES)])


def sampler_of(table: Any, batch_size: int = 6, clusters: Clusters | None = None, **settings: Any) -> TopicAwareSampler:
    settings = {"seed": 1, **settings}
    return TopicAwareSampler(
        table, clusters or clusters_of(), pairs_of(table, "bins"), TopicAware(batch_size, **settings)
    )


def clusters_in(draw: Draw) -> list[int]:
    return np.searchsorted(np.cumsum(SIZES), draw.rows, side="right").tolist()


def test_a_batch_is_full_and_a_function_of_seed_and_number(table: Any):
    one, two, other = sampler_of(table), sampler_of(table), sampler_of(table, seed=2)
    two.draw(7)  # what was drawn before does not matter
    for number in (0, 5, 10**6):
        left, right = one.draw(number), two.draw(number)
        for name in ("rows", "documents", "entries"):
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
        assert left.rows.shape == (6,)
        assert left.documents.shape == (6, 2)
    assert any((one.draw(n).rows != other.draw(n).rows).any() for n in range(5))


def test_entries_are_a_positive_and_a_negative_of_their_query(table: Any):
    sampler = sampler_of(table)
    for number in range(20):
        draw = sampler.draw(number)
        places = draw.entries - table.offsets[draw.rows][:, None]
        assert (places[:, 0] < table.positives[draw.rows]).all()
        assert ((places[:, 1] >= table.positives[draw.rows]) & (places[:, 1] < 4)).all()
        np.testing.assert_array_equal(draw.documents, table.entries[draw.entries])


def test_all_queries_of_a_batch_share_a_cluster_that_is_big_enough(table: Any):
    big = clusters_of((12, 6, 13))
    sampler = sampler_of(table, clusters=big)
    for number in range(60):
        assert len(set(np.searchsorted(np.cumsum((12, 6, 13)), sampler.draw(number).rows, side="right"))) == 1


def test_clusters_come_up_uniformly_whatever_their_size(table: Any):
    sampler = sampler_of(table, 1)
    first = Counter(clusters_in(sampler.draw(number))[0] for number in range(4000))
    assert chisquare([first[number] for number in range(len(SIZES))]).pvalue > 1e-4


def test_queries_of_a_cluster_come_up_uniformly(table: Any):
    sampler = sampler_of(table, 6, clusters_of((QUERIES,)))
    counts = np.bincount(np.concatenate([sampler.draw(n).rows for n in range(2000)]), minlength=QUERIES)
    assert chisquare(counts).pvalue > 1e-4


def test_short_clusters_are_topped_up_and_counted(table: Any):
    sampler = sampler_of(table, 6)
    assert sampler.report.short == 2
    for number in range(100):
        found = clusters_in(sampler.draw(number))
        assert len(found) == 6
        if found[0] == 2:  # three queries, then another cluster
            assert found[:3] == [2, 2, 2]
            assert 2 not in found[3:]


def test_a_batch_larger_than_any_cluster_takes_several_and_warns(table: Any, caplog: pytest.LogCaptureFixture):
    sampler = sampler_of(table, 20)
    assert "every cluster holds less than a batch" in caplog.text
    assert sampler.report.short == len(SIZES)
    for number in range(30):
        rows = sampler.draw(number).rows
        assert len(set(rows.tolist())) == 20


def test_the_whole_table_can_be_one_batch_and_no_more(table: Any):
    assert sorted(sampler_of(table, QUERIES).draw(3).rows) == list(range(QUERIES))
    with pytest.raises(ConfigError, match=f"has {QUERIES} different queries .* needs {QUERIES + 1}"):
        sampler_of(table, QUERIES + 1)


def test_several_clusters_a_batch_share_it(table: Any):
    big = clusters_of((12, 8, 11))
    sampler = sampler_of(table, 7, big, clusters_per_batch=2)
    for number in range(50):
        of = np.searchsorted(np.cumsum((12, 8, 11)), sampler.draw(number).rows, side="right")
        assert sorted(Counter(of.tolist()).values()) == [3, 4]


def test_deduplicated_batches_hold_no_query_twice_and_no_text_twice(scored_table: Callable[..., Any]):
    texts = [f"query {n // 2}" for n in range(20)]  # every text twice, in one cluster or across two
    table = scored_table([([8.0], [1.0, 2.0])] * 20, texts=texts)
    for clusters in (clusters_of((10, 10)), clusters_of((9, 2, 9))):
        sampler = sampler_of(table, 5, clusters)
        for number in range(100):
            rows = sampler.draw(number).rows
            assert len({texts[row] for row in rows.tolist()}) == 5
    with pytest.raises(ConfigError, match="has 10 different queries"):
        sampler_of(table, 11, clusters_of((10, 10)))


def test_without_deduplication_a_small_cluster_can_repeat_its_queries(table: Any):
    """As the authors' code does: the golden holds a query twice."""
    sampler = sampler_of(table, 8, clusters_of((2, 2)), deduplicate=False)
    assert any(len(set(sampler.draw(n).rows.tolist())) < 8 for n in range(3))
    assert all(len(sampler.draw(n)) == 8 for n in range(20))


def test_one_topic_a_rank_or_one_over_all(table: Any):
    big = clusters_of((12, 8, 11))

    def topics(rows: np.ndarray) -> set[int]:
        return set(np.searchsorted(np.cumsum((12, 8, 11)), rows, side="right").tolist())

    whole, each = sampler_of(table, 8, big), sampler_of(table, 8, big, groups=2)
    seen = set()
    for number in range(40):
        assert len(topics(whole.draw(number).rows)) == 1
        for rank in (0, 1):
            key = next(iter(BatchSampler(each, rank, 2)))
            assert len(topics(each.draw(number).rows[key.start : key.stop])) == 1
        seen.add(len(topics(each.draw(number).rows)))
    assert seen == {2}  # no cluster twice while another is left
    with pytest.raises(ConfigError, match="does not divide"):
        sampler_of(table, 7, groups=2)


def test_queries_without_pair_or_cluster_are_never_drawn_and_counted(scored_table: Callable[..., Any]):
    lists = [([8.0], [1.0, 2.0])] * 6 + [([8.0], [])] * 2
    table = scored_table(lists)
    numbers = np.array([0, 0, 0, 1, 1, 1])
    named = Clusters.from_assignment(Ids(["q0", "q1", "q6", "q3", "q7", "q4"]), numbers, 3)
    sampler = sampler_of(table, 2, named)
    report = sampler.report
    assert (report.clusters, report.queries, report.without_cluster, report.without_pair) == (2, 4, 2, 2)
    assert set(np.concatenate([sampler.draw(n).rows for n in range(50)]).tolist()) == {0, 1, 3, 4}
    assert "usable queries in no cluster" in "\n".join(sampler.lines())


def test_without_clusters_batches_are_random(table: Any):
    sampler = TopicAwareSampler(table, None, pairs_of(table, "random"), TopicAware(8, 0))
    assert len({len(set(clusters_in(sampler.draw(n)))) for n in range(20)} - {1}) > 0
    counts = np.bincount(np.concatenate([sampler.draw(n).rows for n in range(2000)]), minlength=QUERIES)
    assert chisquare(counts).pvalue > 1e-4


def test_it_stands_in_a_mixture_and_has_epochs(table: Any):
    sampler = sampler_of(table, 6)
    assert sampler.batches_per_epoch == QUERIES // 6
    mixture = MixtureSampler([sampler, sampler], None, seed=0)
    assert len(mixture.draw(9)) == 6


def test_a_numbered_stream_begins_anew_at_every_call():
    stream = NumberedStream([1, 2])
    first = stream.at(5).random(7)
    stream.at(6).integers(3, size=5, dtype=np.uint8)  # leaves half-used words behind
    np.testing.assert_array_equal(stream.at(5).random(7), first)
    assert (stream.at(6).random(7) != first).all()
    assert (NumberedStream([1, 3]).at(5).random(7) != first).all()
    np.testing.assert_array_equal(NumberedStream([1, 2]).at(5).random(7), first)


def test_batches_over_the_real_clusters(shared_data: Path):
    """207 clusters of 1 to 1,229 of 41,272 queries: one topic wherever a cluster has 32."""
    clusters = read_clusters(shared_data / "tas-clusters" / "clusters.csv.gz")
    count = len(clusters.ids)
    pairs = SimpleNamespace(
        usable=np.ones(count, bool), draw=lambda rows, generator: (2 * rows, 2 * rows + 1), lines=list
    )
    order = Ids(clusters.ids.take(np.random.default_rng(0).permutation(count)))

    class Table:
        name, query_ids, queries, entries = "real", order, np.arange(count), np.arange(2 * count)

        def __len__(self) -> int:
            return count

        def query_keys(self, rows: np.ndarray) -> np.ndarray:
            return rows

    table: Any = Table()
    sampler = TopicAwareSampler(table, clusters, pairs, TopicAware(32, 0))  # type: ignore[arg-type]
    of, sizes = clusters.assignment(order), np.diff(clusters.offsets)
    assert sampler.report.short == int((sizes < 32).sum())
    seen: Counter[int] = Counter()
    for number in range(2000):
        rows = sampler.draw(number).rows
        assert len(set(rows.tolist())) == 32
        first = of[rows[0]]
        seen[int(first)] += 1
        assert (of[rows] == first).sum() == min(32, sizes[first])
        assert len(set(of[rows].tolist())) == 1 or sizes[first] < 32
    assert chisquare([seen[c] for c in range(len(clusters))]).pvalue > 1e-4
