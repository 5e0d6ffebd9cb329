"""Names of images that do not exist as written."""

import unicodedata

import pytest

from foveate.data.file_names import read_names

NFC, NFD = (unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("names", "files", "how"),
    [
        (["sub\\1.jpg", "sub\\2.jpg"], ["sub/1.jpg", "sub/2.jpg"], "\\ as the separator"),
        (["a%20b.jpg", "c%2B.jpg"], ["a b.jpg", "c+.jpg"], "%20 and the like"),
        ([NFC], [NFD], "another Unicode form"),
        ([NFD], [NFC], "another Unicode form"),
        (["1.JPG", "2.JPG"], ["1.jpg", "2.jpg"], "another case"),
        (["1.jpg", "2.jpg"], ["1.png", "2.jpeg"], "another suffix"),
        (["train2017/1.jpg"], ["1.jpg"], "other folders"),  # the folder twice, or one up
        (["1.jpg", "2.jpg"], ["images/default/1.jpg", "images/default/2.jpg"], "other folders"),  # one down, or two
        (["a/1.jpg", "b/1.jpg"], ["x/a/1.jpg", "x/b/1.jpg"], "other folders"),
        (["https://host/bucket/a/1.jpg"], ["a/1.jpg"], "other folders"),
        (["images\\my%20dog.JPG"], ["my dog.jpg"], "another case"),  # several at once
        (["./1.jpg"], ["1.jpg"], "other folders"),
        (["1.jpg", "gone.jpg"], ["x/1.jpg"], "other folders"),
    ],
)
def test_names_are_read_as_the_files_they_mean(names, files, how):
    reading = read_names(names, [*files, "zzz/other.png"])
    assert reading is not None and not reading.doubt and how in reading.how
    assert reading.files == dict(zip(names, files, strict=False))
    assert repr(names[0]) in reading.line() and files[0] in reading.line()


@pytest.mark.parametrize(
    ("names", "files", "doubt"),
    [
        (["1.jpg"], ["train/1.jpg", "val/1.jpg"], "'1.jpg' may be train/1.jpg or val/1.jpg"),
        (["a/1.jpg", "b/1.jpg"], ["1.jpg"], "several names would be one file"),
        (["1.jpg", "2.jpg", "3.jpg"], ["x/1.jpg", "x/9.jpg"], "only 1 of 3"),
        (["1.jpg"], ["masks/1.png"], "label maps"),
        (["1.jpg", "2.jpg"], ["1.png"], "label maps"),
        (["a.jpg"], ["A.JPG", "a.JPG"], "may be"),
    ],
)
def test_what_is_in_doubt_is_not_taken(names, files, doubt):
    reading = read_names(names, files)
    assert reading is not None and doubt in reading.doubt


def test_nothing_is_found():
    assert read_names(["1.jpg"], ["2.jpg"]) is None and read_names(["1.jpg"], []) is None
