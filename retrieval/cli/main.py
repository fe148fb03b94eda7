"""`rtk`: the verbs in one application, and the one place where errors become exit codes.

Exit codes: 0 done, 1 unexpected error, 2 bad arguments or configuration, 3 a missing extra or program, 4 bad input, 5 a
recipe whose number lies outside, 130 stopped by Ctrl-C, 143 terminated.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer
from typer.exceptions import TyperException

from ..._version import __version__
from ...errors import RtkError
from . import (
    crop,
    doctor,
    encode,
    evaluate,
    explain,
    fuse,
    idf,
    index,
    mine,
    quickstart,
    recipe,
    rerank,
    search,
    soup,
    train,
)

app = typer.Typer(
    name="rtk",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, index, search, rerank and evaluate retrievers and rerankers.",
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


for verb in (index, search, rerank, train, evaluate, encode, explain, mine, fuse, crop, idf, soup, quickstart, doctor):
    app.command(name=verb.NAME, help=verb.HELP, no_args_is_help=verb.NAME not in ("quickstart", "doctor"))(verb.command)

app.add_typer(recipe.app, name=recipe.NAME)


def _calm_libraries() -> None:
    """The libraries below draw their own bars and log on import; a command line keeps stderr for its own."""
    for name, value in {
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "true",
    }.items():
        os.environ.setdefault(name, value)


class _Terminated(SystemExit):
    """SIGTERM, as a scheduler or `kill` sends it: what is under way is cleaned up as after Ctrl-C."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise `_Terminated`, where a handler can be set: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def run(arguments: list[str] | None = None) -> None:
    """Entry point of the `rtk` program: runs a verb and exits with its code."""
    _calm_libraries()
    try:
        with _terminable():
            code = typer.main.get_command(app)(args=arguments, prog_name="rtk", standalone_mode=False)
    except RtkError as error:
        _fail(f"error: {error}", error.exit_code)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        hint = f"\nTry '{context.command_path} --help'." if context else ""
        _fail(f"error: {error.format_message()}{hint}", 2)
    except _Terminated:
        _fail("stopped", 143)
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped", 130)
    except BrokenPipeError:
        # The reader of our stdout has left (`| head`); pointing stdout elsewhere keeps the interpreter quiet on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:  # noqa: BLE001 - the last stop: any bug ends here, with its traceback
        import traceback

        traceback.print_exc()
        _fail(f"unexpected error: {error}. This is a bug in rtk; the lines above say where.", 1)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    typer.echo(message, err=True)
    sys.exit(code)
