"""Nouns of captions, without network and corpora."""

import socket
import sys

import pytest

from foveate.data.nouns import count_nouns, load_parser, nouns_of
from foveate.errors import InputError


@pytest.mark.parametrize(
    ("caption", "nouns"),
    [
        # each noun, and after adjacent ones their phrase, in which only the last word becomes singular
        ("Two red fire hydrants stand near parked cars.", ["fire", "hydrant", "fire hydrant", "car"]),
        ("Woman in glasses holding knives and scissors", ["woman", "glass", "knife", "scissors"]),  # capital: no name
        ("a man/woman on a bus, 3 dogs", ["man", "woman", "bus", "dog"]),
        ("People eat asparagus on a tennis court", ["person", "asparagus", "tennis", "court", "tennis court"]),
        # four in a row are no phrase; adjectives and verbs count nothing
        ("a very small street food market table is there", ["street", "food", "market", "table"]),
        ("", []),
    ],
)
def test_nouns_of_sentences(caption, nouns):
    assert nouns_of(caption, load_parser()) == nouns


def test_nouns_are_counted_and_sorted_by_frequency_then_name():
    captions = [("a dog and a cat", "a dog"), (), ("dogs and zebras", "an apple")]
    assert count_nouns(captions, min_count=1) == [("dog", 3), ("apple", 1), ("cat", 1), ("zebra", 1)]
    assert count_nouns(captions, min_count=3) == [("dog", 3)]
    with pytest.raises(InputError, match=r"--captions: .* at least 4 .* the most frequent of 4 nouns has 3"):
        count_nouns(captions, min_count=4)


def test_no_network_and_no_corpora_are_needed(monkeypatch):
    def refuse(*arguments, **settings):
        raise AssertionError("something was fetched")

    import nltk

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(nltk.data, "path", [])
    assert count_nouns([("Two dogs on a beach.",)], min_count=1) == [("beach", 1), ("dog", 1)]


def test_a_missing_package_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "textblob.en", None)
    with pytest.raises(InputError, match=r"pip install textblob, .*--captions"):
        count_nouns([("a dog",)], min_count=1)
