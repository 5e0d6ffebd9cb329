"""Label spaces from the data sets' own lists."""

import pytest

from foveate.data.labels import labels_of, read_labels, read_object_info, write_labels
from foveate.errors import InputError
from foveate.types import Category


def write(tmp_path, text, name="labels.txt"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_openseg_list(tmp_path):
    labels = read_labels(write(tmp_path, "0:invalid_class_id\n1:wall,brick wall\n\n7: street sign\n9:bag,Bag, bags\n"))
    assert labels.ids == (1, 7, 9) and labels.names == ("wall", "street sign", "bag")
    assert labels.classes[2] == ("bag", "bags")  # a word twice in its class counts once
    assert labels.notes == ()
    assert labels.choose([9, 1]).names == ("bag", "wall")
    assert labels.categories()[0] == Category(1, "wall", True, ("brick wall",))
    with pytest.raises(InputError, match=r"need classes with the ids \[2\]"):
        labels.choose([2])


def test_json_list(tmp_path):
    path = write(tmp_path, '\n ["wall, brick wall", "sky",\n "bag"]', "ade.json")
    assert read_labels(path).classes == (("wall", "brick wall"), ("sky",), ("bag",))
    assert read_labels(path).ids == (1, 2, 3) and read_labels(path, ids=[1, 4, 9]).ids == (1, 4, 9)
    with pytest.raises(InputError, match=r"ade\.json: need 2 classes in the data set's order; got 3"):
        read_labels(path, ids=[1, 4])
    with pytest.raises(InputError, match=r"need a JSON list of names as strings; got 3"):
        read_labels(write(tmp_path, "[3]"))
    with pytest.raises(InputError, match=r"need a JSON list of names; JSONDecodeError"):
        read_labels(write(tmp_path, '["wall"'))
    with pytest.raises(InputError, match=r"entry 2: need unique names; got 'wall'"):
        read_labels(write(tmp_path, '["wall", "wall"]'))


def test_a_name_in_two_classes_is_refused_or_noted(tmp_path):
    path = write(tmp_path, "1:earth,ground\n2:sea\n3:land,Ground ,soil\n")
    with pytest.raises(InputError) as caught:
        read_labels(path)
    assert "line 3: need unique names; got 'Ground' in the classes 'earth' and 'land'" in str(caught.value)
    labels = read_labels(path, repeated="keep")
    assert labels.classes == (("earth", "ground"), ("sea",), ("land", "Ground", "soil"))
    assert "1 names are in two classes: 'Ground' in the classes 'earth' and 'land'" in labels.notes[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "need at least one class; got none"),
        ("0:invalid_class_id\n", "need at least one class"),
        ("wall\n", "line 1: need `id:synonym,synonym`; got 'wall'"),
        ("x:wall\n", "line 1: need `id:synonym,synonym`"),
        ("-1:wall\n", "line 1: need `id:synonym,synonym`"),
        ("1:wall\n1:sky\n", "line 2: need unique ids; got 1 twice"),
        ("1:wall,,sky\n", "line 1: need names that are not empty"),
        ("1:\n", "line 1: need names that are not empty"),
    ],
)
def test_a_malformed_list_is_refused(tmp_path, text, reason):
    with pytest.raises(InputError) as caught:
        read_labels(write(tmp_path, text))
    assert reason in str(caught.value) and "labels.txt" in str(caught.value)


def test_binary_and_missing_files_are_refused(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"1:\xff\n")
    with pytest.raises(InputError, match="need a list of classes in UTF-8"):
        read_labels(tmp_path / "x.txt")
    with pytest.raises(InputError, match="not found"):
        read_labels(tmp_path / "gone.txt")


def test_ade20k_object_info(tmp_path):
    # both forms of it: with and without the column `Stuff`; blanks behind numbers and names are the file's
    text = (
        "Idx\tRatio\tTrain\tVal\tName\n1\t0.2\t9\t3\tearth, ground\n2 \t0.1\t9\t3\tbed \n3\t0.1\t9\t3\tland, ground\n"
    )
    labels = read_object_info(write(tmp_path, text))
    assert labels.ids == (1, 2, 3) and labels.classes == (("earth", "ground"), ("bed",), ("land", "ground"))
    assert labels.is_thing == () and "1 names are in two classes" in labels.notes[0]
    with pytest.raises(InputError, match="need unique names"):
        read_object_info(tmp_path / "labels.txt", repeated="refuse")
    stuff = read_object_info(write(tmp_path, "Idx\tStuff\tName\n1\t1\twall\n2\t0\tbed\n"))
    assert stuff.is_thing == (False, True) and [item.is_thing for item in stuff.categories()] == [False, True]


@pytest.mark.parametrize(
    "text", ["", "wall\n", "Idx\tName\n1\twall\tx\n", "Idx\tName\nx\twall\n", "Idx\tStuff\tName\n1\t2\ta\n"]
)
def test_malformed_object_info_is_refused(tmp_path, text):
    with pytest.raises(InputError, match=r"labels\.txt"):
        read_object_info(write(tmp_path, text))


def test_labels_of_categories():
    labels = labels_of([Category(3, "cat", True, ("kitty",)), Category(9, "sky", False)])
    assert labels.ids == (3, 9) and labels.classes == (("cat", "kitty"), ("sky",)) and labels.is_thing == (True, False)


def test_written_labels_are_read_again(tmp_path):
    labels = read_labels(write(tmp_path, "3:wall,brick wall\n1: street sign\n"))
    write_labels(tmp_path / "deep/again.txt", labels)
    assert read_labels(tmp_path / "deep/again.txt") == labels
    assert (tmp_path / "deep/again.txt").read_text() == "3:wall,brick wall\n1:street sign\n"
