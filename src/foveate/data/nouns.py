"""Captions -> their nouns, the classes of region-text supervision (A.4).

A noun is a word that TextBlob's pattern tagger labels NN or NNS, in lower case and singular; the tagger's lexicon is
part of the package. Captions are lowercased before tagging, since the tagger takes capitalised words for names, and
captions begin with one. Adjacent nouns count alone, and two or three of them also together: "two fire hydrants" gives
"fire", "hydrant", "fire hydrant". Errors of the tagger remain: the bear of "a teddy bear" is a verb to it. Names of
people and places, adjectives and other languages are not handled.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from foveate.errors import InputError

_TAGS = ("NN", "NNS")
_MAX_PHRASE = 3  # words
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")
_SINGULAR_ENDINGS = ("ss", "us", "is")


@dataclass(frozen=True)
class Parser:
    """The functions that find nouns in a text."""

    tag: Callable[[str], list[tuple[str, str]]]  # text -> words with their tags (Penn Treebank's)
    singular: Callable[[str], str]  # of a plural


def count_nouns(captions: Iterable[tuple[str, ...]], *, min_count: int = 5) -> list[tuple[str, int]]:
    """Count the nouns in the captions of many images.

    Args:
        captions: of each image.
        min_count: ignore rarer nouns.

    Returns:
        Noun and number of occurrences, the most frequent first, ties by name.

    Raises:
        InputError: TextBlob is not installed, or no noun is frequent enough.
    """
    parser = load_parser()
    counts = Counter(noun for texts in captions for text in texts for noun in nouns_of(text, parser))
    frequent = [(noun, count) for noun, count in counts.items() if count >= min_count]
    if not frequent:
        raise InputError(
            f"--captions: need nouns with at least {min_count} occurrences in the captions; the most frequent of "
            f"{len(counts)} nouns has {max(counts.values(), default=0)}. Give a list of nouns to --captions instead."
        )
    return sorted(frequent, key=lambda pair: (-pair[1], pair[0]))


def nouns_of(caption: str, parser: Parser) -> list[str]:
    """Find the nouns of a caption, with repetitions, each run of adjacent nouns followed by its phrase."""
    nouns: list[str] = []
    run: list[tuple[str, str]] = []  # adjacent nouns: as written, and in the singular
    words = parser.tag(caption.lower().replace("/", " , "))  # "man/woman" are two nouns and no phrase
    for word, tag in [*words, ("", "")]:
        if tag in _TAGS and len(word) > 1 and _WORD.fullmatch(word):
            run.append((word, parser.singular(word) if tag == "NNS" else word))
            continue
        # the end of a run: its nouns, then the phrase, of which only the last word is made singular
        nouns += [singular for _, singular in run]
        if 2 <= len(run) <= _MAX_PHRASE:
            nouns.append(" ".join([*(written for written, _ in run[:-1]), run[-1][1]]))
        run = []
    return nouns


def load_parser() -> Parser:
    """TextBlob's pattern tagger, which needs none of the corpora that the package can download.

    Raises:
        InputError: TextBlob is not installed.
    """
    try:
        from textblob.en import lexicon, tag
        from textblob.en.inflect import singularize
    except ImportError as error:
        raise InputError(
            f"nouns of captions: need the package textblob; it cannot be imported ({error}). Install it with "
            "pip install textblob, or give a list of nouns to --captions."
        ) from error

    def singular(word: str) -> str:
        stem = singularize(word)  # gives "asparagu" for "asparagus", which the tagger takes for a plural
        return word if word.endswith(_SINGULAR_ENDINGS) and stem not in lexicon else stem

    return Parser(tag, singular)
