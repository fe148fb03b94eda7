"""Queries cut out of documents: spans of the right length in the right place, by chance that hangs on nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rtk.errors import ConfigError, DataError
from rtk.eval import Cropping, Document, check_collection, crop_queries, open_collection

WORDS = [f"w{number}" for number in range(30)]
CORPUS = [
    {"_id": "long", "title": "A title", "text": " ".join(WORDS)},
    {"_id": "d#1", "title": "", "text": "exactly  three\nwords"},
    {"_id": "short", "title": "", "text": "two words"},
    {"_id": "empty", "title": "", "text": ""},
]


@pytest.fixture
def folder(beir_folder) -> Path:
    return beir_folder(corpus=CORPUS, queries=[{"_id": "q", "text": "asked"}], qrels={"test": [("q", "long", 1)]})


def test_queries_are_spans_judged_for_their_own_document(folder: Path):
    parts = crop_queries(open_collection(folder), Cropping(shortest=3, longest=6, each=40, seed=1), split="warm-up")
    queries = dict(parts.queries)
    assert parts.judgments["warm-up"].to_dict() == {qid: {qid.rpartition("#")[0]: 1} for qid in queries}
    assert [qid for qid in queries if qid.startswith("d#1#")] == [f"d#1#{number}" for number in range(40)]
    assert {text for qid, text in queries.items() if qid.startswith("d#1#")} == {"exactly three words"}
    spans = [text.split() for qid, text in queries.items() if qid.startswith("long#")]
    whole = ["A", "title", *WORDS]
    starts = [whole.index(span[0]) for span in spans]
    assert all(whole[start : start + len(span)] == span for start, span in zip(starts, spans, strict=True))
    assert {len(span) for span in spans} == {3, 4, 5, 6}
    assert min(starts) < 5
    assert max(starts) > 20
    assert len(queries) == 80  # none of the documents of two words and of none


def test_a_query_depends_on_the_seed_and_its_own_document_only():
    document = Document("x", "", " ".join(WORDS))
    one = list(Cropping(each=9, seed=4).queries(document))
    assert one == list(Cropping(each=9, seed=4).queries(document))
    assert one[:3] == list(Cropping(each=3, seed=4).queries(document))
    assert one != list(Cropping(each=9, seed=5).queries(document))
    assert [text for _, text in one] != [
        text for _, text in Cropping(each=9, seed=4).queries(Document("y", "", document.text))
    ]


def test_only_the_first_words(folder: Path):
    parts = crop_queries(open_collection(folder), Cropping(3, 5, each=60, within=8))
    found = {word for qid, text in parts.queries if qid.startswith("long#") for word in text.split()}
    assert found == {"A", "title", *WORDS[:6]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"shortest": 0}, "0 to 8 words"), ({"shortest": 9}, "9 to 8 words"), ({"each": 0}, "each is 0"),
     ({"within": 2}, "within is 2 words")],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused(settings: dict[str, int], message: str):
    with pytest.raises(ConfigError, match=message):
        Cropping(**settings)


def test_a_collection_of_short_texts_is_refused(folder: Path):
    with pytest.raises(DataError, match=r"no document .* has 99 words"):
        crop_queries(open_collection(folder), Cropping(99, 99))


def test_the_verb_writes_a_collection_that_trains(rtk, folder: Path, tmp_path: Path):
    out = tmp_path / "crops"
    code, shown, error = rtk(f"crop -c {folder} --words 3:4 --each 2 --within 20 --seed 3 --json --out {out}")
    assert code == 0, error
    assert json.loads(shown) == {"out": str(out), "documents": 4, "queries": 4, "too_short": 2}
    cropped = open_collection(out)
    report = check_collection(cropped, "train")
    assert (report.queries, report.judgments, report.unknown_documents.count) == (4, 4, 0)
    assert list(cropped.judgments("train").qids) == ["long#0", "long#1", "d#1#0", "d#1#1"]
    assert rtk(f"crop -c {folder} --out {out}")[0] == 2  # it is there
    assert rtk(f"crop -c {folder} --words 3-4 --out {tmp_path}/more")[2].endswith("such as 3:8\n")
    code, _, error = rtk(f"crop -c {folder} --overwrite --out {folder}")
    assert (code, "is the collection itself" in error) == (2, True)
    assert (folder / "qrels" / "test.tsv").exists()
