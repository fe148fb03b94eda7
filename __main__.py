"""`python -m rtk`, for torchrun and for environments without the program on PATH."""

from __future__ import annotations

from .retrieval.cli.main import run

if __name__ == "__main__":
    run()
