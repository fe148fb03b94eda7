"""Clusters of queries: k-means, the published file, the cache."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtk.errors import ConfigError, DataError
from rtk.ids import Ids
from rtk.retrieval.sampling import Clusters, clustering, read_clusters, write_clusters
from rtk.retrieval.sampling.clustering import KMeans, cluster_queries, cluster_vectors, k_means

pytest.importorskip("faiss")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTK_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def blobs() -> tuple[np.ndarray, np.ndarray]:
    """300 vectors around five far points, and which point each is around."""
    generator = np.random.default_rng(0)
    of = generator.integers(0, 5, 300)
    centres = 10 * np.eye(5, 16, dtype=np.float32) * np.array([1, 2, 3, 4, 5], np.float32)[:, None]
    return (centres[of] + generator.normal(0, 0.1, (300, 16))).astype(np.float32), of


def names(count: int) -> list[str]:
    return [f"q{n:03}" for n in range(count)]


@pytest.mark.parametrize("metric", ["l2", "inner-product"])
def test_far_blobs_are_found(blobs: tuple[np.ndarray, np.ndarray], metric: Any):
    vectors, of = blobs
    found = k_means(vectors, KMeans(20, metric=metric, seed=3))
    assert found.centroids.shape == (20, 16)
    for number in set(found.assignment.tolist()):  # no cluster has queries of two
        assert len(set(of[found.assignment == number])) == 1


def test_l2_assigns_to_the_nearest_and_lowers_its_objective():
    vectors = np.random.default_rng(1).normal(size=(400, 8)).astype(np.float32)
    found = k_means(vectors, KMeans(10))
    distances = np.linalg.norm(vectors[:, None].astype(np.float64) - found.centroids[None], axis=2)
    np.testing.assert_array_equal(found.assignment, distances.argmin(axis=1))
    assert len(found.objective) == 10
    assert found.objective[-1] < found.objective[0]
    mean = np.stack([vectors[found.assignment == c].mean(axis=0) for c in range(10)])
    moved = np.linalg.norm(mean - found.centroids, axis=1).mean()
    assert moved < 0.5 * np.linalg.norm(found.centroids, axis=1).mean()


def test_spherical_centroids_have_length_one_and_the_length_of_a_vector_counts_nothing():
    generator = np.random.default_rng(2)
    vectors = generator.normal(size=(300, 8)).astype(np.float32)
    found = k_means(vectors, KMeans(6, metric="inner-product"))
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found.assignment, (vectors @ found.centroids.T).argmax(axis=1))
    longer = clustering.assign(vectors * generator.uniform(0.5, 4, (300, 1)).astype(np.float32), found.centroids,
                               "inner-product")  # fmt: skip
    np.testing.assert_array_equal(longer, found.assignment)


def test_equal_seeds_give_equal_clusters_and_memory_mapped_vectors_do_too(tmp_path: Path):
    vectors = np.random.default_rng(4).normal(size=(500, 8)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    one, two, other = (
        k_means(given, KMeans(20, seed=seed)).assignment for given, seed in ((vectors, 5), (mapped, 5), (vectors, 6))
    )
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


def test_sizes_are_reported():
    clusters = Clusters.from_assignment(Ids(names(7)), np.array([0, 0, 0, 0, 2, 2, 3]), 5)
    sizes = clusters.sizes()
    assert (sizes.clusters, sizes.queries, sizes.empty) == (5, 7, 2)
    assert (sizes.smallest, sizes.median, sizes.largest) == (1, 2, 4)
    assert str(sizes) == "7 queries in 5 clusters of 1 to 4 queries (median 2), 2 empty"
    assert clusters[0] == ["q000", "q001", "q002", "q003"]
    assert clusters.assignment(Ids(["q006", "no", "q004"])).tolist() == [3, -1, 2]


def test_fewer_queries_than_clusters_and_vectors_that_are_not_finite_are_refused():
    vectors = np.ones((3, 4), np.float32)
    with pytest.raises(ConfigError, match="3 queries cannot make 4 clusters"):
        k_means(vectors, KMeans(4))
    vectors[1, 2] = np.nan
    with pytest.raises(DataError, match="vector 1 has values that are not finite"):
        k_means(vectors, KMeans(2))
    with pytest.raises(ConfigError, match="do not belong together"):
        cluster_vectors(["a"], vectors, KMeans(1))


@pytest.mark.parametrize("name", ["c.txt", "c.tsv.gz", "c.csv", "c.csv.gz"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str):
    clusters = Clusters.from_assignment(Ids(["007", "7", "größe", "d"]), np.array([3, 0, 3, 1]), 5)
    write_clusters(clusters, tmp_path / name)
    found = read_clusters(tmp_path / name, Ids(["d", "7", "007", "größe", "more"]))
    assert list(found) == list(clusters) == [["7"], ["d"], [], ["007", "größe"], []]
    write_clusters(found, tmp_path / f"again-{name}")
    assert (tmp_path / name).read_bytes() == (tmp_path / f"again-{name}").read_bytes()


def test_the_published_format_is_lines_of_any_length_and_white_space(tmp_path: Path):
    path = tmp_path / "published.tsv"
    path.write_text("1 22\t333\r\n\n  4444   5\n")
    assert list(read_clusters(path)) == [["1", "22", "333"], [], ["4444", "5"]]


def test_an_id_that_holds_a_separator_cannot_be_written(tmp_path: Path):
    clusters = Clusters.from_assignment(Ids(["a b", "c,d"]), np.array([0, 0]), 1)
    with pytest.raises(DataError, match="'a b' cannot stand"):
        write_clusters(clusters, tmp_path / "c.txt")
    with pytest.raises(DataError, match="'c,d' cannot stand"):
        write_clusters(clusters, tmp_path / "c.csv")
    assert not list(tmp_path.glob("*c.*"))


def test_an_id_that_stands_twice_is_refused_with_both_lines(tmp_path: Path):
    path = tmp_path / "c.txt"
    path.write_text("a b\nc\nd a\n")
    with pytest.raises(DataError, match=r"c\.txt:3: query 'a' stands here and in line 1"):
        read_clusters(path)


def test_unknown_ids_are_an_error_with_the_line_or_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "c.txt"
    path.write_text("a b\nc x\ny\n")
    known = Ids(["a", "b", "c"])
    with pytest.raises(DataError, match=r"c\.txt:2: 2 of 5 query ids are unknown \('x', 'y'\)"):
        read_clusters(path, known)
    found = read_clusters(path, known, unknown="count")
    assert list(found) == [["a", "b"], ["c"], []]
    assert found.unknown == 2
    assert "2 of 5 query ids are unknown" in caplog.text
    with pytest.raises(DataError, match="5 of 5"):
        read_clusters(path, Ids(["other"]), unknown="count")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"a \xff b\n"])
def test_files_that_are_no_clusters_are_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "c.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"c\.txt: "):
        read_clusters(path)


def test_a_broken_archive_is_refused(tmp_path: Path):
    path = tmp_path / "c.txt.gz"
    path.write_bytes(gzip.compress(b"a b\n" * 1000)[:-12])
    with pytest.raises(DataError, match="not readable as clusters"):
        read_clusters(path)


def test_the_real_clusters_are_read(shared_data: Path):
    found = read_clusters(shared_data / "tas-clusters" / "clusters.csv.gz")
    sizes = found.sizes()
    assert (sizes.clusters, sizes.queries, sizes.empty) == (207, 41_272, 0)
    assert (sizes.smallest, sizes.largest) == (1, 1229)


TEXTS = ["read file", "write file", "cell protein", "protein gene", "wing flow", "heat flow", "list sort", "sort text"]


def test_queries_are_encoded_and_clustered_once(
    tiny_dense: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    first = cluster_queries(names(8), TEXTS, tiny_dense, KMeans(3))
    assert first.sizes().queries == 8
    with monkeypatch.context() as patch:
        patch.setattr(clustering, "_encode", lambda *_: pytest.fail("encoded again"))
        assert list(cluster_queries(names(8), TEXTS, tiny_dense, KMeans(3))) == list(first)
    changed: list[Any] = [
        (names(8), TEXTS, KMeans(3, seed=9)),
        (names(8), TEXTS, KMeans(3, metric="inner-product")),
        (names(8), [*TEXTS[:-1], "other"], KMeans(3)),
        ([*names(7), "z"], TEXTS, KMeans(3)),
    ]
    calls: list[int] = []
    encode = clustering._encode
    monkeypatch.setattr(clustering, "_encode", lambda *given: (calls.append(1), encode(*given))[1])
    for ids, texts, settings in changed:
        cluster_queries(ids, texts, tiny_dense, settings)
    assert len(calls) == len(changed)
    import torch

    with torch.no_grad():
        next(tiny_dense.parameters()).add_(1.0)
    cluster_queries(names(8), TEXTS, tiny_dense, KMeans(3))
    assert len(calls) == len(changed) + 1


def test_an_encoder_of_ones_own_works_and_is_not_cached(tmp_path: Path):
    class Letters:
        def encode_query(self, texts: Any) -> np.ndarray:
            return np.array([[text.count("f"), text.count("t")] for text in texts], np.float32)

        encode_document = encode_query

    assert cluster_queries(names(8), TEXTS, Letters(), KMeans(2)).sizes().queries == 8
    assert not (tmp_path / "cache" / "clusters").exists()


def test_a_token_encoder_cannot_cluster_queries(tiny_multi_vector: Any):
    with pytest.raises(ConfigError, match="one dense vector each"):
        cluster_queries(names(8), TEXTS, tiny_multi_vector, KMeans(2))
