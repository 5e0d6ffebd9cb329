"""Vocabulary files, and mistakes in them with file, location and reason."""

import json
from pathlib import Path

import pytest

from foveate.clip import vocabulary
from foveate.clip.vocabulary import read_vocabulary
from foveate.errors import InputError
from foveate.types import normalize_name, repeated_name

CAT_AND_DOG = (("cat", "kitty"), ("hot dog",))


def written(tmp_path, name, content) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "classes"),
    [
        ("a.txt", "# mine\n\ncat, kitty\r\n  hot dog  \n", CAT_AND_DOG),
        ("marked.TXT", b"\xef\xbb\xbfcat,kitty\nhot dog", CAT_AND_DOG),
        ("umlaut.txt", "Käse\n", (("Käse",),)),
        ("names.json", '["cat", "hot dog"]', (("cat",), ("hot dog",))),
        ("lists.json", '[["cat", "kitty"], ["hot dog"]]', CAT_AND_DOG),
        ("mixed.json", '[["cat", "kitty"], "hot dog"]', CAT_AND_DOG),
        ("object.json", '{"cat": ["kitty"], "hot dog": []}', CAT_AND_DOG),
        ("own.json", '{"cat": ["kitty", "cat"], "hot dog": ["hot dog"]}', CAT_AND_DOG),
        ("comma.json", '[["door, open"]]', (("door, open",),)),  # what a .txt cannot hold
        ("catseg.json", '["cat, kitty", "hot dog"]', CAT_AND_DOG),
        ("close.json", '["cat,kitty"]', (("cat,kitty",),)),  # CAT-Seg splits at ", " alone
    ],
)
def test_vocabulary_files_are_read(tmp_path, name, content, classes):
    path = written(tmp_path, name, content)
    assert read_vocabulary(path).classes == classes == read_vocabulary(str(path)).classes
    assert read_vocabulary(path).names == tuple(words[0] for words in classes)


def test_shared_names_in_lists_of_synonyms_are_printed(tmp_path, capsys):
    path = written(tmp_path, "a.json", '["screen, silver screen", "crt screen, screen", "Screen", "dog"]')
    assert read_vocabulary(path).classes == (
        ("screen", "silver screen"),
        ("crt screen", "screen"),
        ("Screen",),
        ("dog",),
    )
    assert "a.json: 2 names occur more than once: screen, Screen" in capsys.readouterr().err
    with pytest.raises(InputError, match="need every name once"):
        read_vocabulary(written(tmp_path, "b.json", '["screen", "screen"]'))


def test_names_in_a_text_are_one_class_each():
    assert read_vocabulary("cat, hot dog ,wall-other").classes == (("cat",), ("hot dog",), ("wall-other",))
    assert read_vocabulary("st. bernard").names == ("st. bernard",)  # a dot alone makes no file


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "# nothing\n\n", "a.txt: need at least one class"),
        ("a.txt", "cat\n\ndog,,hound\n", r"a.txt: line 3: need a name in each position; got an empty one \(''\)"),
        ("a.txt", "cat\n_ \n", "a.txt: line 2: need a name in each position"),
        ("a.txt", "cat\nDog\ndog\n", r"line 3: need every name once; got 'dog' again, class 'Dog' has it .*line 2"),
        (
            "a.txt",
            "cat, tom_cat\ndog, Tom  Cat",
            r"line 2: .*'Tom  Cat' again in class 'dog', class 'cat' has it \(.*a.txt: line 1\)",
        ),
        ("a.txt", "grass, lawn\nsand, Lawn", r"'Lawn' again in class 'sand', class 'grass' has it"),
        ("a.txt", "dog, hound, dog", "line 1: .*this class has it twice"),
        ("a.txt", b"cat\nd\xffg", "a.txt: need text in UTF-8; byte 5"),
        ("a.json", "[]", "a.json: need at least one class"),
        ("a.json", "{}", "a.json: need at least one class"),
        ("a.json", '["cat", 3]', "a.json: entry 2: need a list of synonyms; got 3"),
        ("a.json", '["cat", ["dog", null]]', "a.json: entry 2: need names as text; got None"),
        ("a.json", '["cat", []]', "a.json: entry 2: need at least one name"),
        ("a.json", '["cat", {"dog": []}]', "a.json: entry 2: need a list of synonyms"),
        ("a.json", '{"cat": "kitty"}', "a.json: entry 'cat': need a list of synonyms; got 'kitty'"),
        (
            "a.json",
            '{"cat": ["x"], "dog": ["x"]}',
            "entry 'dog': .*'x' again in class 'dog', class 'cat' has it .*entry 'cat'",
        ),
        ("a.json", '{"cat": [], "cat": []}', "entry 'cat': .*'cat' again"),
        ("a.json", '"cat"', "a.json: need a list of names, .*got 'cat'"),
        ("a.json", '["cat"', "a.json: need JSON; JSONDecodeError"),
        ("a.json", "[" * 100_000, "a.json: need JSON; RecursionError"),
        ("a.csv", "cat", "need a vocabulary in a .txt or .json file; got one that ends in '.csv'"),
    ],
)
def test_mistakes_are_reported_with_their_location(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    with pytest.raises(InputError, match=message):
        read_vocabulary(path)
    with pytest.raises(InputError, match=message):
        read_vocabulary(str(path))


def test_mistakes_in_a_text_are_reported():
    for typed, message in (("", "name 1: need a name"), ("cat,", "name 2: need a name"), ("a,A", "name 2: .*once")):
        with pytest.raises(InputError, match=message):
            read_vocabulary(typed)


def test_missing_and_too_large_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"none\.txt: need a vocabulary file; not found"):
        read_vocabulary(str(tmp_path / "none.txt"))
    with pytest.raises(InputError, match="need a vocabulary file"):
        read_vocabulary((tmp_path / "folder.txt").mkdir() or tmp_path / "folder.txt")
    path = written(tmp_path, "a.json", json.dumps(["cat", "dog"]))
    monkeypatch.setattr(vocabulary, "MAX_BYTES", 13)  # of its 14
    with pytest.raises(InputError, match="at most 13 bytes; it has 14"):
        read_vocabulary(path)


@pytest.mark.parametrize(
    ("name", "content", "classes", "told"),
    [
        ("a.txt", "0: cat, kitty\n1: hot dog", CAT_AND_DOG, "'0' to '1' before the 2 names are ids"),
        ("a.txt", "1 cat\n13 hot dog", (("cat",), ("hot dog",)), "'1' to '13'"),
        ("a.txt", "id,name\n0,cat\n1,hot dog", (("cat",), ("hot dog",)), "'id,name' is read as the names of columns"),
        ("a.txt", "n02123045 cat, kitty\nn07697537\thot dog", CAT_AND_DOG, "'n02123045' to 'n07697537'"),
        ("a.txt", "0 n02123045 cat\n1 n07697537 hot dog", (("cat",), ("hot dog",)), "'n02123045'"),
        ("a.txt", "cat, kitty, dog", (("cat", "kitty", "dog"),), "one class, 'cat', of which kitty, dog are synonyms"),
        ("a.txt", "3 wheeler\n4 wheeler", (("3 wheeler",), ("4 wheeler",)), ""),  # numbers of no list
        ("a.txt", "1 wheeler\ncat", (("1 wheeler",), ("cat",)), ""),
        ("a.json", '{"base": ["cat"], "novel": ["hot dog"]}', (("cat",), ("hot dog",)), "base then novel"),
        ("a.json", '{"names": {"1": "hot dog", "0": "cat, kitty"}, "nc": 2}', CAT_AND_DOG, "the classes in 'names'"),
        ("a.json", '{"classes": [["cat", "kitty"], ["hot dog"]]}', CAT_AND_DOG, "the classes in 'classes'"),
        ("a.json", '{"categories": [{"id": 7, "name": "cat"}], "images": []}', (("cat",),), "in 'categories'"),
        ("a.json", '{"0": ["n02123045", "cat"], "1": ["n07697537", "hot dog"]}', (("cat",), ("hot dog",)), "0 to 1"),
        ("a.json", '{"n02123045": ["cat", "kitty"], "n07697537": "hot dog"}', CAT_AND_DOG, "of 2 WordNet ids"),
        ("a.json", '{"hot dog": 1, "cat": 0}', (("cat",), ("hot dog",)), "the numbers of classes, 0 to 1"),
    ],
)
def test_other_forms_are_read_as_what_they_are_and_reported(tmp_path, capsys, name, content, classes, told):
    assert read_vocabulary(written(tmp_path, name, content)).classes == classes
    error = capsys.readouterr().err
    assert told in error and bool(told) == bool(error)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("dog;cat", "need names separated by commas; got 'dog;cat'"),
        ("dog\ncat", "need names separated by commas"),
        ("dog\uff0ccat", "need names separated by commas"),
        ('["dog", "cat"]', "need names separated by commas"),
        ('dog, "cat', "name 2: need names separated by commas"),
        ("names.csv", "need a class name, or one file alone; got 'names.csv', and no such file"),
        ("dog, cat.yaml", "name 2: .*no such file"),
        ("cat, list.txt", "not found"),
        ("0, 1", "name 1: need class names; got '0', a number"),
        ("dog, n01440764", "name 2: need class names; got 'n01440764', a WordNet id"),
        ("caf\u00e9, cafe\u0301", "need every name once"),
        ("T-shirt, t shirt", "need every name once"),
    ],
)
def test_what_is_no_list_of_names_is_refused(typed, message):
    with pytest.raises(InputError, match=message):
        read_vocabulary(typed)


def test_quotes_around_names_are_no_part_of_them():
    assert read_vocabulary("\"dog\", 'hot dog', boys'").names == ("dog", "hot dog", "boys'")
    with pytest.raises(InputError, match="need a number per class; got 0 twice"):
        vocabulary._classes_of(Path("a.json"), vocabulary._Pairs([("0", "a"), ("00", "b")]))


def test_a_class_is_called_as_the_known_name_that_it_has():
    classes = vocabulary.Vocabulary((("sofa", "Couch"), ("traffic_light",), ("zebra",)))
    assert vocabulary.named_as(classes, ["couch", "traffic light"]) == ("Couch", "traffic_light", "zebra")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("traffic_light", "Traffic  Light"), ("T-shirt", "t shirt"), ("caf\u00e9", "cafe\u0301"), ("'dog' ", "dog"),
        ("x\u2013ray", "X-ray"), ("\u200bdog", "dog"), ("\uff44og", "dog"), ("Stra\u00dfe", "STRASSE"),
    ],
)  # fmt: skip
def test_names_that_differ_in_form_are_the_same(one, other):
    assert normalize_name(one) == normalize_name(other) and repeated_name(["a", one, other]) == (one, other)
    assert normalize_name("dogs") != normalize_name("dog") and repeated_name(["dog", "dogs"]) is None
