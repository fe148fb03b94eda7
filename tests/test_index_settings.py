"""Settings of engines that are numbers: every engine says what is wrong with one, before it does any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse import random as random_sparse

from rtk.errors import ConfigError
from rtk.extras import available
from rtk.ids import Ids
from rtk.indexes import BuildPlan, build_dense, build_lexical, build_sparse, open_index, parse_backend
from rtk.indexes.bounds import ABOVE_ZERO, COUNT, SHARE, Bounds, check_numbers

COUNT_SAID, ABOVE_SAID = "a whole number from 1 to 2147483647", "a number above 0"
SHARE_SAID = "a number from 0 to 1"
ROWS = 40
DENSE = np.random.default_rng(0).standard_normal((ROWS, 8)).astype(np.float32)
SPARSE = random_sparse(ROWS, 30, 0.2, format="csr", random_state=0, dtype=np.float32)
TEXTS = [f"alpha beta{row}" for row in range(ROWS)]
KINDS: dict[str, tuple[Callable[..., Any], Any]] = {
    "torch": (build_dense, DENSE), "faiss:IVF4,SQ8,RFlat": (build_dense, DENSE), "bm25s": (build_lexical, TEXTS),
    "exact": (build_sparse, SPARSE), "seismic": (build_sparse, SPARSE), "lucene": (build_sparse, SPARSE),
    "lucene-bm25": (build_lexical, TEXTS), "exact-bm25": (build_lexical, TEXTS),
}  # fmt: skip


def case(name: str, setting: str, value: Any, said: str) -> Any:
    needs = {"lucene": "pyserini", "seismic": "seismic", "faiss": "faiss", "exact": "numba"}
    module = next((needs[part] for part in needs if name.startswith(part)), None)
    marks = [pytest.mark.lucene] if name.startswith("lucene") else []
    if module is not None and not available(module):
        marks.append(pytest.mark.skip(reason=f"{module} is not installed"))
    return pytest.param(name, setting, value, said, marks=marks, id=f"{name} {setting} {value}")


def build(out: Path, name: str, read: Callable[[int, int], Any], **settings: Any) -> Any:
    plan = BuildPlan(parse_backend(name.removesuffix("-bm25")), settings=settings)
    return KINDS[name][0](out, Ids(map(str, range(ROWS))), read, plan=plan)


@pytest.mark.parametrize(
    ("name", "setting", "value", "said"),
    [
        case("seismic", "n_postings", "abc", COUNT_SAID),
        case("seismic", "n_postings", 0, COUNT_SAID),
        case("seismic", "n_postings", 2**70, COUNT_SAID),
        case("seismic", "centroid_fraction", 1.5, SHARE_SAID),
        case("seismic", "max_fraction", 0, ABOVE_SAID),
        case("lucene", "factor", "abc", ABOVE_SAID),
        case("lucene", "factor", None, ABOVE_SAID),
        case("lucene", "query_factor", 0, ABOVE_SAID),
        case("faiss:IVF4,SQ8,RFlat", "train_size", "abc", COUNT_SAID),
        case("faiss:IVF4,SQ8,RFlat", "nprobe", 2.5, COUNT_SAID),
        case("faiss:IVF4,SQ8,RFlat", "k_factor", 0.5, "a number of at least 1"),
        case("bm25s", "k1", "abc", "a number from 0 to 1000000000"),
        case("exact-bm25", "b", 2, SHARE_SAID),
        case("lucene-bm25", "k1", -1, "a number from 0 to 1000000000"),
    ],
)
def test_settings_of_a_build_are_refused_before_it_begins(
    name: str, setting: str, value: Any, said: str, tmp_path: Path
) -> None:
    def read(start: int, stop: int) -> Any:
        raise AssertionError("no document is read or encoded for an index that cannot be built")

    with pytest.raises(ConfigError, match=r"back-end|BM25 index") as refused:
        build(tmp_path / "index", name, read, **{setting: value})
    assert refused.value.problems == (f"{setting} is {value!r}, expected {said}",)


@pytest.mark.parametrize(
    ("name", "setting", "value", "said"),
    [
        *(case("seismic", "query_cut", value, COUNT_SAID) for value in ("abc", -3, 0, 2.5, True, 2**70)),
        *(case("seismic", "heap_factor", value, "a number of at least 0") for value in (-1, "nan", "inf")),
        case("lucene", "query_factor", "abc", ABOVE_SAID),
        case("lucene-bm25", "b", "abc", SHARE_SAID),
        case("exact", "threads", "abc", COUNT_SAID),
        case("torch", "block", "abc", COUNT_SAID),
        case("faiss:IVF4,SQ8,RFlat", "nprobe", "abc", COUNT_SAID),
    ],
)
def test_options_of_a_search_are_refused(name: str, setting: str, value: Any, said: str, tmp_path: Path) -> None:
    data = KINDS[name][1]
    index = build(tmp_path / "index", name, lambda start, stop: data[start:stop])
    with pytest.raises(ConfigError) as refused:
        index.search(data[:2], 3, options={setting: value})
    assert refused.value.problems == (f"{setting} is {value!r}, expected {said}",)


@pytest.mark.parametrize(
    ("name", "setting", "value", "said"),
    [case("lucene", "threads", 1, "query_factor"), case("seismic", "threads", 1, "query_cut, heap_factor")],
)
def test_threads_are_an_option_of_an_exact_search_alone(
    name: str, setting: str, value: Any, said: str, tmp_path: Path
) -> None:
    """docs/sparse-index.md says so."""
    build(tmp_path / "index", name, lambda start, stop: SPARSE[start:stop])
    index = open_index(tmp_path / "index", threads=2)
    with pytest.raises(ConfigError, match=f"unknown search options .*; known: {said}\n"):
        index.search(SPARSE[:2], 3, options={setting: value})


def test_numbers_are_read_as_they_are_written() -> None:
    """YAML takes 1e3 for text, and 3000.0 is a whole number."""
    bounds = {"factor": ABOVE_ZERO, "cut": COUNT, "seed": Bounds(0, whole=True)}
    given = {"factor": "1e3", "cut": 3000.0, "seed": 2**60 + 1, "order": "given"}
    assert check_numbers(given, bounds, "settings") == {**given, "factor": 1000.0, "cut": 3000}
    assert given["factor"] == "1e3"


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match="settings of the engine that cannot be used") as refused:
        check_numbers(
            {"a": True, "b": "", "c": 1, "d": csr_matrix((1, 1))},
            dict.fromkeys("abcd", SHARE),
            "settings of the engine",
        )
    assert [problem.partition(" ")[0] for problem in refused.value.problems] == ["a", "b", "d"]
