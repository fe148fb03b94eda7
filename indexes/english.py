"""English analysis after Lucene's EnglishAnalyzer, so that BM25 in numpy stands beside Lucene.

Words are found by the word-break rules of Unicode (UAX 29) as far as they matter for running text; a possessive 's
goes, letters become lower case, Lucene's 33 stop words go, and Porter's stemmer, with Lucene's two
additions, does the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import Stemmer

__all__ = ["STOP_WORDS", "EnglishAnalyzer", "words"]

STOP_WORDS = frozenset(
    (
        *("a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not"),
        *("of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was"),
        *("will", "with"),
    )
)

_LONGEST = 255  # Lucene cuts longer words into pieces of this size
_STEMS_KEPT = 500_000

# In ASCII: runs of letters, digits and underscores; a colon, full stop or apostrophe joins letters, a comma, semicolon,
# full stop or apostrophe joins digits.
_ASCII = re.compile(r"\w+(?:(?:(?<=[A-Za-z])[.:'](?=[A-Za-z])|(?<=[0-9])[.,;'](?=[0-9]))\w+)*")

_NUMBER_FORMS = (
    "\u00b2\u00b3\u00b9\u00bc-\u00be\u2070\u2074-\u2079\u2080-\u2089\u2150-\u215f"
    "\u2460-\u249b\u24ea-\u24ff\u2776-\u2793"
)
_IDEOGRAPHS = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HIRAGANA, _KATAKANA = "\u3041-\u309f", "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_SYMBOLS = "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2600-\u26ff\u2702-\u27b0\U0001f300-\U0001faff"  # words of their own
# Marks continue the character before them.
_MARKS = (
    "\u00ad\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0903"
    "\u093a-\u094f\u0981-\u0983\u09bc-\u09cd\u0a01-\u0a03\u0b82\u0bbe-\u0bcd\u0c00-\u0c04\u0c3e-\u0c56\u0e31\u0e34-\u0e3a"
    "\u0e47-\u0e4e\u1ab0-\u1aff\u1dc0-\u1dff\u200c\u200d\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f"
)
_LETTER = rf"[^\W\d_{_NUMBER_FORMS}{_IDEOGRAPHS}{_HIRAGANA}{_KATAKANA}]"
_RUN = rf"(?:[^\W{_NUMBER_FORMS}{_IDEOGRAPHS}{_HIRAGANA}{_KATAKANA}][{_MARKS}]*)+"
_JOINS_BOTH = "'.\u2018\u2019\u2024\ufe52\uff07\uff0e"
_JOINS_LETTERS = ":\u00b7\u0387\u055f\u05f4\u2027\ufe13\ufe55\uff1a"
_JOINS_DIGITS = ",;\u037e\u0589\u060c\u060d\u066c\u07f8\u2044\ufe10\ufe14"
_UNICODE = re.compile(
    rf"{_RUN}(?:(?:(?<={_LETTER})[{_JOINS_BOTH}{_JOINS_LETTERS}](?={_LETTER})"
    rf"|(?<=\d)[{_JOINS_BOTH}{_JOINS_DIGITS}](?=\d)){_RUN})*"
    rf"|[{_KATAKANA}]+|[{_IDEOGRAPHS}{_HIRAGANA}]|[{_SYMBOLS}]"
)
_MEASURE = re.compile("[^aeiouy]*[aeiouy]+[^aeiouy]")  # Porter's m > 0
_POSSESSIVE = re.compile("['\u2019\uff07][sS]$")


def words(text: str) -> Iterator[str]:
    """The words of `text`, in order, as they are written. Runs of underscores alone are no words."""
    for match in (_ASCII if text.isascii() else _UNICODE).finditer(text):
        word = match.group()
        if word.strip("_"):
            if len(word) <= _LONGEST:
                yield word
            else:
                yield from (word[at : at + _LONGEST] for at in range(0, len(word), _LONGEST))


class EnglishAnalyzer:
    """Text → terms.

    Args:
        stemmer: a Snowball algorithm of PyStemmer, or None for no stemming. "porter" is Lucene's.
        stop_words: terms to drop, compared before stemming.
    """

    def __init__(self, stemmer: str | None = "porter", stop_words: frozenset[str] = STOP_WORDS) -> None:
        self.stemmer, self.stop_words = stemmer, stop_words
        self._stem = None if stemmer is None else Stemmer.Stemmer(stemmer).stemWord
        self._terms: dict[str, str | None] = {}

    def __call__(self, text: str) -> list[str]:
        """The terms of `text`, in order, with repetitions."""
        known = self._terms
        if len(known) > _STEMS_KEPT:  # bounds memory on corpora with millions of distinct words
            known.clear()
        result: list[str] = []
        for word in words(text):
            term = known[word] if word in known else self._learn(word)
            if term is not None:
                result.append(term)
        return result

    def batch(self, texts: Sequence[str]) -> Iterator[list[str]]:
        return map(self, texts)

    def _learn(self, word: str) -> str | None:
        term: str | None = _POSSESSIVE.sub("", word).lower()
        if not term or term in self.stop_words:
            term = None
        elif self._stem is not None:
            term = _as_lucene(term, self._stem) if self.stemmer == "porter" else self._stem(term)
        self._terms[word] = term
        return term


def _as_lucene(word: str, stem: Callable[[str], str]) -> str:
    """Porter's stem as Lucene takes it: words of up to two letters stay, -bli becomes -ble and -logi becomes -log."""
    if len(word) <= 2:
        return word
    found = stem(word)
    if found.endswith("bli") and _MEASURE.match(found[:-3]):
        return stem(found[:-1] + "e")
    if found.endswith("logi") and _MEASURE.match(found[:-4]):
        return found[:-1]
    return found
