"""What names the images that changed under unfinished work."""

import gzip
from pathlib import Path

import pytest

from foveate.data.listing import list_files, list_trained
from foveate.data.records import Member, Record
from foveate.io.listing import LISTED, Listing, changes_since, keep_listing

ROWS = [[f"{letter}.jpg", 1] for letter in "abcdef"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (ROWS, ""),
        (ROWS[1:], "1 gone or renamed (a.jpg)"),
        (ROWS[4:], "4 gone or renamed (a.jpg, b.jpg, c.jpg and 1 more)"),
        ([*ROWS[:5], ["\\udcff g.jpg", 1]], "1 gone or renamed (f.jpg), 1 new (\\udcff g.jpg)"),
        ([*ROWS[:2], ["c.jpg", 2], *ROWS[3:]], "1 changed (c.jpg)"),
        ([ROWS[0], ROWS[2], ROWS[1], *ROWS[3:]], "the same ones in another order, from c.jpg on"),
        ([*ROWS, ROWS[0]], "one is listed twice"),
    ],
)
def test_changes_are_named_by_kind(tmp_path: Path, rows, expected):
    keep_listing(tmp_path / LISTED, Listing(lambda: ROWS))
    assert changes_since(tmp_path / LISTED, Listing(lambda: rows)) == expected


def test_a_missing_or_damaged_list_is_said_and_a_complete_one_is_not_written_again(tmp_path: Path):
    path, listing = tmp_path / LISTED, Listing(lambda: ROWS)
    other = Listing(lambda: ROWS[:2])
    assert "is missing or damaged" in changes_since(path, other)
    keep_listing(path, listing)
    written = path.stat().st_mtime_ns
    keep_listing(path, listing)
    assert path.stat().st_mtime_ns == written and len(gzip.decompress(path.read_bytes()).splitlines()) == 7
    path.write_bytes(path.read_bytes()[:30])
    assert "is missing or damaged" in changes_since(path, other)
    path.write_text("no archive")
    assert "is missing or damaged" in changes_since(path, other)


def test_what_counts_of_an_image():
    """Its name and what is learned of it; of a file its length and time."""
    boxed = Record("a", Path("a.jpg"), 8, 8, boxes=((0, 0, 4, 4),), labels=(1,), crowd=(False,))
    changed = [
        Record("b", Path("a.jpg"), 8, 8, boxes=boxed.boxes, labels=(1,), crowd=(False,)),
        Record(1, Path("a.jpg"), 8, 8, boxes=boxed.boxes, labels=(1,), crowd=(False,)),
        Record(1, Path("b.jpg"), 8, 8, boxes=boxed.boxes, labels=(1,), crowd=(False,)),
        Record("a", Path("a.jpg"), 8, 8, boxes=((0, 0, 4, 5),), labels=(1,), crowd=(False,)),
        Record("a", Path("a.jpg"), 8, 8, boxes=boxed.boxes, labels=(2,), crowd=(False,)),
        Record("a", Path("a.jpg"), 8, 8, boxes=boxed.boxes, labels=(1,), crowd=(True,)),
        Record("a", Path("a.tar"), member=Member("a", 0, 7)),
        Record("a", Path("a.tar"), member=Member("a", 0, 8)),
        Record("a", Path("a.jpg")),
    ]
    digests = [list_trained([record]).identity["sha256"] for record in (boxed, *changed)]
    assert len(set(digests)) == len(digests)
    assert list_trained([Record("a", Path("elsewhere/a.jpg"))]).identity["sha256"] == digests[-1]


def test_files_count_by_length_and_time(tmp_path: Path):
    path = tmp_path / "a.jpg"
    records = [Record("a", path)]
    missing = list_files(records).identity["sha256"]
    path.write_bytes(b"one")
    written = list_files(records).identity["sha256"]
    path.write_bytes(b"three")
    assert len({missing, written, list_files(records).identity["sha256"]}) == 3
