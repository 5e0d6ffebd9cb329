"""Captions -> the nouns in them, the classes of region-text supervision (A.4).

A noun is a word that the pattern tagger of TextBlob calls NN or NNS, written small and in the singular; its lexicon
comes with the package, so nothing is fetched. Captions are written small before they are tagged: the tagger takes a
capital for a name, and captions begin with one. Of adjacent nouns ("two fire hydrants") each counts, and two or three
of them also count together: "fire", "hydrant", "fire hydrant". What the tagger gets wrong stays wrong: the bear of
"a teddy bear" is a verb to it, and the box of "a ringed box" a noun without its adjective.
Deliberately absent: names of people and places, adjectives, other languages, and embeddings (the text tower's matter).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from foveate.errors import InputError

_TAGS = ("NN", "NNS")
_LONGEST = 3  # words of a phrase
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")
_SINGULAR_ENDINGS = ("ss", "us", "is")


@dataclass(frozen=True)
class Parser:
    """What finds nouns in a text."""

    tag: Callable[[str], list[tuple[str, str]]]  # text -> words with their tags (Penn Treebank's)
    singular: Callable[[str], str]  # of a plural


def count_nouns(captions: Iterable[tuple[str, ...]], *, min_count: int = 5) -> list[tuple[str, int]]:
    """Count the nouns in the captions of many images.

    Args:
        captions: of each image.
        min_count: leave out nouns with fewer occurrences.

    Returns:
        Noun and number of occurrences, the most frequent first, equally frequent ones by name.

    Raises:
        InputError: the tagger is not installed, or no noun occurs so often.
    """
    parser = load_parser()
    counts = Counter(noun for texts in captions for text in texts for noun in nouns_of(text, parser))
    kept = [(noun, count) for noun, count in counts.items() if count >= min_count]
    if not kept:
        most = max(counts.values(), default=0)
        raise InputError(
            f"--captions: need nouns that occur at least {min_count} times; of the {len(counts)} in the captions, the "
            f"most frequent occurs {most} times. Give a list of nouns to --captions instead."
        )
    return sorted(kept, key=lambda pair: (-pair[1], pair[0]))


def nouns_of(caption: str, parser: Parser) -> list[str]:
    """Find the nouns of a caption, each as often as it occurs, and after adjacent ones their phrase."""
    found: list[str] = []
    run: list[tuple[str, str]] = []  # adjacent nouns: as written, and in the singular
    words = parser.tag(caption.lower().replace("/", " , "))  # "man/woman" are two nouns and no phrase
    for word, kind in [*words, ("", "")]:
        if kind in _TAGS and len(word) > 1 and _WORD.fullmatch(word):
            run.append((word, parser.singular(word) if kind == "NNS" else word))
            continue
        found += [one for _, one in run]
        if 2 <= len(run) <= _LONGEST:
            found.append(" ".join([*(written for written, _ in run[:-1]), run[-1][1]]))
        run = []
    return found


def load_parser() -> Parser:
    """TextBlob's pattern tagger, which needs none of the corpora that other parts of that package fetch.

    Raises:
        InputError: it is not installed.
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
        one = singularize(word)  # makes "asparagu" of "asparagus", which the tagger takes for a plural
        return word if word.endswith(_SINGULAR_ENDINGS) and one not in lexicon else one

    return Parser(tag, singular)
