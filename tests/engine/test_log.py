"""The metrics file is the record of one run, however often it was stopped."""

import json

from foveate.engine.log import Log, clock


def write(path, *, start, stop, steps=10):
    with Log(path, steps=steps, start_step=start, every=2) as log:
        for done in range(start + 1, stop + 1):
            log.step(done, loss=done / 8, lr=0.5, gradient_norm=1.0, images=4, items=13)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_second_step_and_the_last_are_written(tmp_path):
    write(tmp_path / "metrics.jsonl", start=0, stop=5, steps=5)
    lines = read(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert [line["loss"] for line in lines] == [0.25, 0.5, 0.625]
    assert lines[0]["items"] == 13 and lines[0]["lr"] == 0.5 and lines[0]["images_per_second"] > 0


def test_a_resumed_run_removes_the_lines_past_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, start=0, stop=8)
    with path.open("a") as file:
        file.write('{"step": 9, "lo')  # killed in the middle of a line
    write(path, start=4, stop=10)
    assert [line["step"] for line in read(path)] == [2, 4, 6, 8, 10]


def test_a_resumed_run_has_one_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for start in (0, 10):
        write(path, start=start, stop=10)
        with Log(path, steps=10, start_step=10) as log:
            log.event("end", {"step": 10})
    assert [line.get("event", line["step"]) for line in read(path)] == [2, 4, 6, 8, 10, "end"]


def test_a_step_without_items_has_no_loss(tmp_path):
    with Log(tmp_path / "metrics.jsonl", steps=2, every=1) as log:
        log.step(1, loss=None, lr=0.5, gradient_norm=0.0, images=0, items=0)
    (line,) = read(tmp_path / "metrics.jsonl")
    assert "loss" not in line and line["step"] == 1 and line["items"] == 0


def test_a_silent_process_writes_nothing(tmp_path):
    with Log(tmp_path / "metrics.jsonl", steps=1, every=1, verbose=False) as log:
        log.step(1, loss=0.5, lr=0.5, gradient_norm=1.0, images=4, items=13)
        log.event("end", {})
    assert list(tmp_path.iterdir()) == []


def test_plain_lines_have_rate_and_time_left(tmp_path, capsys):
    write(tmp_path / "metrics.jsonl", start=0, stop=10)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("step 10/10  loss ") and "images/s" in last and last.endswith("0:00 left")


def test_durations_are_readable():
    assert [clock(seconds) for seconds in (7, 750, 3723)] == ["0:07", "12:30", "1:02:03"]
    assert clock(71 * 3600) == "71:00:00" and clock(3 * 86400 + 4 * 3600 + 306) == "3 days 4:05:06"
