"""The names of `rtk.eval`: all there, all lazy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rtk.eval


@pytest.mark.parametrize("name", rtk.eval.__all__)
def test_every_name_is_there(name):
    assert getattr(rtk.eval, name) is not None


def test_checkers_and_python_see_the_same_names():
    tree = ast.parse(Path(rtk.eval.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert seen == rtk.eval._HOMES
    assert sorted(seen) == sorted(rtk.eval.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rtk.eval.nothing  # noqa: B018


def test_importing_loads_nothing_heavy(tmp_path):
    code = "import sys, rtk.eval; print([name for name in ('numpy', 'pyarrow', 'torch') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path).stdout == "[]\n"


def test_collections_need_neither_torch_nor_datasets(beir_folder, tmp_path):
    code = (
        "import sys; from rtk.eval import open_collection as o; c = o(sys.argv[1]); c.documents, c.check('test'); "
        "print([name for name in ('torch', 'transformers', 'datasets', 'ir_datasets') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(beir_folder())]
    assert subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout == "[]\n"
