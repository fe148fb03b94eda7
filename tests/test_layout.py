"""The house: imports go down only, every package is installed, extras are named once."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

from rtk.extras import EXTRAS

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"indexes": 1, "eval": 2, "retrieval": 3, "recipes": 4}
LIBRARY = sorted(
    path
    for path in [*ROOT.glob("*.py"), *(p for package in FLOORS for p in (ROOT / package).rglob("*.py"))]
    if "__pycache__" not in path.parts
)


def imported(path: Path) -> list[tuple[int, str]]:
    """(line, dotted module inside rtk) of every import of ours in a file, those inside functions too."""
    here = list(path.relative_to(ROOT).with_suffix("").parts)
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level]
            target = [*base, *(node.module.split(".") if node.module else [])]
            if not node.module and not base:
                found += [(node.lineno, alias.name) for alias in node.names]
            else:
                found.append((node.lineno, ".".join(target)))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rtk":
            found.append((node.lineno, "rtk (absolute)"))
        elif isinstance(node, ast.Import):
            found += [(node.lineno, "rtk (absolute)") for alias in node.names if alias.name.split(".")[0] == "rtk"]
    return found


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path):
    floor = FLOORS.get(path.relative_to(ROOT).parts[0], 0)
    for line, module in imported(path):
        assert module != "rtk (absolute)", f"{path}:{line}: inside the library imports are relative"
        if path in (ROOT / "__init__.py", ROOT / "__main__.py"):
            continue  # the front doors name things of every floor, lazily
        target = FLOORS.get(module.split(".")[0], 0)
        assert target <= floor, f"{path}:{line}: floor {floor} imports {module} of floor {target}"


def test_the_import_walk_sees_an_upward_import(tmp_path, monkeypatch):
    (tmp_path / "indexes").mkdir()
    bad = tmp_path / "indexes" / "bad.py"
    bad.write_text("def f():\n    from ..retrieval.search import Retriever\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert imported(bad) == [(2, "retrieval.search")]


def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_every_package_is_listed_for_installation():
    listed = set(config()["options"]["packages"].split())
    folders = {
        ".".join(["rtk", *path.parent.relative_to(ROOT).parts])
        for path in LIBRARY
        if path.name == "__init__.py" and path.parent != ROOT
    }
    assert listed == folders | {"rtk"}


def test_every_folder_with_code_is_a_package():
    missing = {path.parent for path in LIBRARY if not (path.parent / "__init__.py").exists()}
    assert not missing


def test_extras_in_code_are_extras_of_the_package():
    assert set(EXTRAS) <= set(config()["options.extras_require"])


def test_import_rtk_is_light():
    code = (
        "import sys, rtk, rtk.retrieval.cli.main;"
        "print([m for m in ('torch', 'transformers', 'datasets', 'faiss', 'pandas', 'scipy') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert answer.stdout.strip() == "[]"


def test_names_of_the_front_door_exist():
    import rtk

    for name in rtk.__all__:
        assert getattr(rtk, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        rtk.nothing_like_it  # noqa: B018
