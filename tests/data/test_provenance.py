"""The provenance of proposals, and which files are refused."""

import json

import pytest

from foveate.data.provenance import check_provenance, read_provenance
from foveate.errors import InputError


@pytest.fixture
def written(tmp_path):
    def write(training: object, novel: object = ()) -> object:
        path = tmp_path / "p.json"
        facts = {"training_categories": training, "novel_categories": list(novel), "steps": 3}
        path.write_text(json.dumps({"info": {"provenance": facts}, "images": [], "annotations": []}))
        return path

    return write


def test_provenance_is_read(written):
    provenance = read_provenance(written(["a", "b"], ["c"]))
    assert provenance is not None and (provenance.training_categories, provenance.novel_categories) == (
        ("a", "b"),
        ("c",),
    )


def test_base_classes_pass_without_a_note(written):
    assert check_provenance(written(["a", "b"], ["c"]), ["c", "d"]) is None
    assert check_provenance(written(["a", "b"], ["c"]), None) is None


def test_names_that_cannot_be_compared_give_a_warning(written):
    note = check_provenance(written([]), ["c"], known=["a", "c"])
    assert note is not None and note.startswith("WARNING") and "empty list training_categories" in note
    note = check_provenance(written(["x", "y"]), ["c"], known=["a", "c"])
    assert note is not None and note.startswith("WARNING")
    assert "trained on 2 classes (such as 'x'), none of which is among the 2 of the data (such as 'a')" in note
    assert check_provenance(written(["x", "A "]), ["c"], known=["a", "c"]) is None  # one is enough
    assert check_provenance(written(["x"]), ["c"]) is None  # the data's classes are not known


def test_novel_classes_are_refused(written):
    path = written(["a", "Hair_Drier", "c"])
    with pytest.raises(
        InputError, match=r"p\.json: .* trained on 2 novel classes: Hair_Drier, c\. .* remove the entry info"
    ):
        check_provenance(path, ["hair drier", "c"])


def test_without_a_split_the_novel_classes_of_the_file_are_used(written):
    with pytest.raises(InputError, match="1 novel classes: b"):
        check_provenance(written(["a", "b"], ["b"]), None)
    assert check_provenance(written(["a", "b"], ["b"]), []) is None  # the data has no novel class


def test_long_lists_of_classes_are_shortened(written):
    with pytest.raises(InputError, match=r"7 novel classes: n0, n1, n2, n3, n4 and 2 more"):
        check_provenance(written([f"n{i}" for i in range(7)]), [f"n{i}" for i in range(9)])


@pytest.mark.parametrize("content", [{"a.jpg": []}, [{"image_id": 1}], {"info": {}, "images": []}, {"info": "x"}])
def test_a_file_without_provenance_gives_a_note(tmp_path, content):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(content))
    assert read_provenance(path) is None
    note = check_provenance(path, ["a"])
    assert note is not None and "has no provenance" in note


@pytest.mark.parametrize("training", [None, "a", [1], {"a": 1}])
def test_a_malformed_provenance_is_refused(written, training):
    with pytest.raises(InputError, match=r"info\.provenance: need the lists of names"):
        check_provenance(written(training), ["a"])


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="not found"):
        read_provenance(tmp_path / "none.json")
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(InputError, match="need a boxes file in JSON"):
        read_provenance(tmp_path / "p.json")
