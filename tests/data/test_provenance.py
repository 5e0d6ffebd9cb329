"""What a file of proposals says of its making, and which files are refused."""

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


def test_what_is_written_is_read(written):
    found = read_provenance(written(["a", "b"], ["c"]))
    assert found is not None and (found.training_categories, found.novel_categories) == (("a", "b"), ("c",))


def test_base_classes_alone_pass_without_a_word(written):
    assert check_provenance(written(["a", "b"], ["c"]), ["c", "d"]) is None
    assert check_provenance(written(["a", "b"], ["c"]), None) is None


def test_names_that_say_nothing_are_told(written):
    note = check_provenance(written([]), ["c"], known=["a", "c"])
    assert note is not None and note.startswith("WARNING") and "empty training_categories" in note
    note = check_provenance(written(["x", "y"]), ["c"], known=["a", "c"])
    assert note is not None and note.startswith("WARNING")
    assert "trained on 2 classes (such as 'x'), none of which is among the 2 of the data (such as 'a')" in note
    assert check_provenance(written(["x", "A "]), ["c"], known=["a", "c"]) is None  # one is enough
    assert check_provenance(written(["x"]), ["c"]) is None  # the data's classes are not known


def test_a_novel_class_is_refused_by_name_with_what_to_do(written):
    path = written(["a", "Hair_Drier", "c"])
    with pytest.raises(
        InputError, match=r"p\.json: .* trained on 2 novel classes: Hair_Drier, c\. .* remove the entry info"
    ):
        check_provenance(path, ["hair drier", "c"])


def test_where_the_data_has_no_split_the_files_own_counts(written):
    with pytest.raises(InputError, match="1 novel classes: b"):
        check_provenance(written(["a", "b"], ["b"]), None)
    assert check_provenance(written(["a", "b"], ["b"]), []) is None  # the data says that nothing is novel


def test_many_are_not_all_named(written):
    with pytest.raises(InputError, match=r"7 novel classes: n0, n1, n2, n3, n4 and 2 more"):
        check_provenance(written([f"n{i}" for i in range(7)]), [f"n{i}" for i in range(9)])


@pytest.mark.parametrize("content", [{"a.jpg": []}, [{"image_id": 1}], {"info": {}, "images": []}, {"info": "x"}])
def test_a_file_that_says_nothing_gives_a_note(tmp_path, content):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(content))
    assert read_provenance(path) is None
    note = check_provenance(path, ["a"])
    assert note is not None and "does not say what it was trained on" in note


@pytest.mark.parametrize("training", [None, "a", [1], {"a": 1}])
def test_a_broken_provenance_is_refused(written, training):
    with pytest.raises(InputError, match=r"info\.provenance: need the lists of names"):
        check_provenance(written(training), ["a"])


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        read_provenance(tmp_path / "none.json")
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(InputError, match="need a boxes file in JSON"):
        read_provenance(tmp_path / "p.json")
