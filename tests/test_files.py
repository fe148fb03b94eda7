"""Writing files: whole or not at all, and nothing of anybody else's is removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtk.errors import ConfigError, OutputExists
from rtk.files import atomic_folder, atomic_path, check_output, final_name


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path):
    folder = tmp_path / "deep" / "a"

    def fail() -> None:
        with atomic_folder(folder) as temporary:
            (temporary / "half").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(folder.parent.iterdir()) == []
    with atomic_folder(folder) as temporary:
        assert final_name(temporary.name) == "a"
        (temporary / "whole").touch()
    with atomic_folder(folder, or_discard=True) as temporary:
        (temporary / "late").touch()
    with pytest.raises(OSError, match="not empty"), atomic_folder(folder) as temporary:
        (temporary / "late").touch()
    assert [path.name for path in folder.parent.rglob("*")] == ["a", "whole"]


def test_the_name_of_remains_says_what_they_were_to_be():
    assert final_name(".17.tmp.a.tmp.json") == "a.tmp.json"
    assert [final_name(name) for name in ("a.json", ".a.tmp.json", "17.tmp.a", ".tmp.a")] == [None] * 4


def test_a_write_replaces_in_one_step(tmp_path: Path):
    path = tmp_path / "deep" / "a.jsonl.gz"
    with atomic_path(path) as temporary:
        assert temporary.name.endswith(".jsonl.gz")
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"


def test_what_is_there_needs_overwrite(tmp_path: Path):
    path = tmp_path / "a.txt"
    assert check_output(path, overwrite=False) == path
    path.write_text("x")
    with pytest.raises(OutputExists, match="--overwrite"):
        check_output(path, overwrite=False)
    check_output(path, overwrite=True)
    assert path.exists()  # the rename that follows replaces it


def test_a_folder_of_somebody_else_is_never_removed(tmp_path: Path):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "thesis.txt").write_text("x")
    for mark in (None, "mark.json"):
        with pytest.raises(ConfigError, match="did not make"):
            check_output(folder, overwrite=True, folder_with=mark)
    assert (folder / "thesis.txt").exists()
    (folder / "mark.json").write_text("{}")
    check_output(folder, overwrite=True, folder_with="mark.json")
    assert not folder.exists()
