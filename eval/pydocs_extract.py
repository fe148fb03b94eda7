"""Read the documentation strings of Python's standard library: a script for a fresh interpreter.

`pydocs` runs this file with `python -I`, so that some two hundred imports, and whatever the calling process has
patched, stay apart from each other: the same Python gives the same documents in any program. It imports the standard
library only, and prints one JSON object a line: first {"modules", "skipped", "python"}, then {"id", "title", "text"} in
order of id.

Kept are the documentation strings of modules, functions, classes, methods and properties that have a public name. An
object with several names (`os.path.join`, `posixpath.join`) becomes one document: built-ins under their bare name, else
under the module that defines it where that is listed, else under the first listed module that shows it. Left out are
private names, documentation strings taken over from a base class, texts that another document has under the same last
name, and texts too short to say anything.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import inspect
import io
import json
import re
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

# Explicit, so that nothing is imported for its effects (antigravity, this, idlelib, turtle, readline), nothing that
# needs a display, and nothing that Python 3.11 to 3.13 removed. Order decides whose name an alias gets.
_NAMES = """
builtins abc argparse array ast asyncio atexit base64 bdb binascii bisect bz2 calendar cmath cmd code codecs codeop
collections collections.abc colorsys compileall concurrent.futures configparser contextlib contextvars copy copyreg
cProfile csv ctypes ctypes.util curses curses.ascii curses.panel curses.textpad dataclasses datetime dbm decimal
difflib dis doctest email email.charset email.contentmanager email.encoders email.errors email.generator email.header
email.headerregistry email.message email.mime.application email.mime.audio email.mime.base email.mime.image
email.mime.message email.mime.multipart email.mime.nonmultipart email.mime.text email.parser email.policy email.utils
encodings.idna enum errno faulthandler fcntl filecmp fileinput fnmatch fractions ftplib functools gc getopt getpass
gettext glob graphlib grp gzip hashlib heapq hmac html html.entities html.parser http http.client http.cookiejar
http.cookies http.server imaplib importlib importlib.abc importlib.machinery importlib.metadata importlib.resources
importlib.util inspect io ipaddress itertools json json.tool keyword linecache locale logging logging.config
logging.handlers lzma mailbox marshal math mimetypes mmap modulefinder multiprocessing multiprocessing.connection
multiprocessing.managers multiprocessing.pool multiprocessing.shared_memory multiprocessing.sharedctypes netrc numbers
opcode operator optparse os os.path pathlib pdb pickle pickletools pkgutil platform plistlib poplib pprint profile
pstats pty pwd py_compile pyclbr pydoc queue quopri random re reprlib resource runpy sched secrets select selectors
shelve shlex shutil signal smtplib socket socketserver sqlite3 ssl stat statistics string stringprep struct subprocess
symtable sys sysconfig syslog tabnanny tarfile tempfile termios textwrap threading time timeit token tokenize tomllib
trace traceback tracemalloc tty types typing unicodedata unittest unittest.mock urllib.error urllib.parse
urllib.request urllib.response urllib.robotparser uuid venv warnings wave weakref webbrowser winreg winsound
wsgiref.handlers wsgiref.headers wsgiref.simple_server wsgiref.util wsgiref.validate xml.dom xml.dom.minidom
xml.dom.pulldom xml.etree.ElementTree xml.sax xml.sax.handler xml.sax.saxutils xml.sax.xmlreader xmlrpc.client
xmlrpc.server zipapp zipfile zipimport zlib zoneinfo
"""
MODULES = _NAMES.split()

LEAST_WORDS = 3
LONGEST_SIGNATURE = 160
_ROUTINES = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.MethodType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
)
_ATTRIBUTES = (property, types.GetSetDescriptorType, types.MemberDescriptorType)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_WORD = re.compile(r"\w+")


class Found(NamedTuple):
    """A documented object under one of its names. `rank` orders the names of one object: the least is its id."""

    rank: tuple[int, int, int, int, str]
    name: str
    value: Any
    text: str


def import_modules(names: Sequence[str]) -> tuple[dict[str, types.ModuleType], dict[str, str]]:
    """Import what can be imported; return the modules, and the reason for each that cannot (no Windows, no SQLite)."""
    modules: dict[str, types.ModuleType] = {}
    skipped: dict[str, str] = {}
    for name in names:
        try:
            modules[name] = importlib.import_module(name)
        except (ImportError, OSError, AttributeError) as error:
            skipped[name] = f"{type(error).__name__}: {error}"
    return modules, skipped


def public_names(module: types.ModuleType) -> list[str]:
    """The names that a module shows: `__all__`, else the public ones that it does not take from elsewhere."""
    if module is builtins:
        return [name for name in vars(module) if not name.startswith("_")]
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if hasattr(module, name) and not name.startswith("_")]
    home = module.__name__.partition(".")[0]

    def is_own(value: object) -> bool:
        origin = getattr(value, "__module__", None) or home
        return origin.lstrip("_").partition(".")[0] == home or origin.startswith("_") or origin in {"posix", "nt"}

    return [name for name, value in vars(module).items() if not name.startswith("_") and is_own(value)]


def documentation(value: object, owner: type | None = None, name: str = "") -> str:
    """The cleaned documentation string of an object, empty where it has none of its own. A class brings that of its
    constructor along."""
    text = getattr(value, "__doc__", None)
    text = text if isinstance(text, str) else ""
    if isinstance(value, type):
        text = "" if any(text == base.__doc__ for base in value.__mro__[1:]) else inspect.cleandoc(text)
        constructor = vars(value).get("__init__")
        if isinstance(constructor, types.FunctionType) and constructor.__doc__:
            text += "\n\n" + inspect.cleandoc(constructor.__doc__)
    elif owner is not None and any(
        text == getattr(vars(base).get(name), "__doc__", None) for base in owner.__mro__[1:]
    ):
        return ""
    return inspect.cleandoc(text).strip()


def unwrap(value: object) -> object:
    return value.__func__ if isinstance(value, (staticmethod, classmethod)) else value


def members(owner: type, public: set[type]) -> Iterator[tuple[int, str, object, str]]:
    """Public methods and properties that a class defines, or takes from a base that has no public name itself:
    (how far up, name, object, text)."""
    hidden: set[str] = set()  # what a nearer class overrides
    for distance, base in enumerate(owner.__mro__):
        own = {name: unwrap(raw) for name, raw in vars(base).items() if name not in hidden}
        hidden |= own.keys()
        if distance and base in public:
            continue
        for name, value in own.items():
            if name.startswith("_") or not isinstance(value, (*_ROUTINES, *_ATTRIBUTES)):
                continue
            text = documentation(value, base, name)
            if text and not text.startswith("Alias for field number"):
                yield distance, name, value, text


def walk(modules: dict[str, types.ModuleType]) -> Iterator[Found]:
    """Every documented public object under each of its names."""
    shown = {
        module: [(name, getattr(modules[module], name)) for name in public_names(modules[module])] for module in modules
    }
    public = {value for pairs in shown.values() for _, value in pairs if isinstance(value, type)}
    for position, (module, pairs) in enumerate(shown.items()):
        bare = module == "builtins"
        if not bare:
            yield Found((0, 0, 0, position, module), module, modules[module], documentation(modules[module]))
        for name, value in pairs:
            full = name if bare else f"{module}.{name}"
            group = 0 if bare else 1 if getattr(value, "__module__", None) == module else 2
            place = 2 * position + (name != getattr(value, "__name__", name))  # its own name before an alias
            if inspect.isroutine(value):
                yield Found((group, 0, 0, place, full), full, value, documentation(value))
            elif isinstance(value, type):
                yield Found((group, 1, 0, place, full), full, value, documentation(value))
                for distance, member, attribute, text in members(value, public):
                    yield Found((group, 1, distance, place, full), f"{full}.{member}", attribute, text)


def signature(value: object) -> str:
    """The call signature, without addresses of objects; empty where there is none to read."""
    if not callable(value):
        return ""
    try:
        text = _ADDRESS.sub("", str(inspect.signature(value)))
    except (ValueError, TypeError, AttributeError, NameError):  # C signatures whose defaults do not evaluate
        return ""
    return text if len(text) <= LONGEST_SIGNATURE else ""


def documents(modules: dict[str, types.ModuleType]) -> list[dict[str, str]]:
    """One document an object, in order of id."""
    everything = list(walk(modules))  # held, so that no id() is given out twice
    best: dict[int, Found] = {}
    for found in everything:
        key = id(found.value)
        long_enough = len(_WORD.findall(found.text)) >= LEAST_WORDS
        if long_enough and (key not in best or found.rank < best[key].rank):
            best[key] = found
    texts: dict[tuple[str, str], Found] = {}
    for found in best.values():  # os.scandir's and pathlib's copies of one text under one last name are one document
        key = (found.name.rpartition(".")[2], found.text)
        if key not in texts or found.rank < texts[key].rank:
            texts[key] = found
    return [
        {"id": found.name, "title": found.name + signature(found.value), "text": found.text}
        for found in sorted(texts.values(), key=lambda found: found.name)
    ]


def main() -> None:
    warnings.simplefilter("ignore")  # deprecated modules say so when imported
    with contextlib.redirect_stdout(io.StringIO()):
        modules, skipped = import_modules(MODULES)
    out = sys.stdout
    out.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    header = {"modules": len(modules), "skipped": skipped, "python": sys.version.split()[0]}
    for row in [header, *documents(modules)]:
        out.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
