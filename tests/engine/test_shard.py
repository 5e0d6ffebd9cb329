"""Weights sharded over two processes: the gradients of whole weights, and half of them in each."""

import json
from pathlib import Path

import pytest

SCRIPT = str(Path(__file__).with_name("sharded.py"))


@pytest.fixture(scope="module")
def results(zygote, tiny_model, tmp_path_factory) -> list[dict]:
    out = tmp_path_factory.mktemp("sharded")
    processes = []
    for rank in range(2):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": 29561}
        environment = {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
        output = out / f"output{rank}.txt"
        processes.append(zygote.start(output, [tiny_model, out], script=SCRIPT, environment=environment))
    assert [zygote.wait(process) for process in processes] == [0, 0], (out / "said0.txt").read_text()
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]


WAYS = ["(False, False)", "(False, True)", "(True, False)", "empty", "in parts"]


@pytest.mark.parametrize("way", [*WAYS, *(f"terms {way}" for way in WAYS)])
def test_gradients_are_those_of_whole_weights(results, way):
    for one in results:  # FSDP adds up in bfloat16 what two uses of a weight in bfloat16 give; 8 bits of it are exact
        most = one[way]["largest"] / 256 if way == "terms (True, False)" else 1e-7
        assert one[way]["apart"] <= most and one[way]["largest"] > 1e-3


def test_each_process_holds_its_part(results):
    assert results[0]["(False, False)"]["share"] + results[1]["(False, False)"]["share"] == pytest.approx(1)
    assert 0.4 < results[0]["(False, False)"]["share"] < 0.6


def test_valid_tokens_are_refused(results):
    assert "--tokens all" in results[0]["refused"]
