"""Descriptions of heads: round trip, refusals."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from foveate.errors import InputError
from foveate.heads.common.product import read_dataclass


@dataclass(frozen=True)
class Inner:
    size: int
    kind: Literal["a", "b"]
    taps: tuple[int, ...] | None
    pair: tuple[int, int]
    longest: int | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    share: float
    inner: Inner
    names: tuple[tuple[str, ...], ...]
    facts: dict[str, Any]
    has_clip: bool = False


INNER = {"size": 3, "kind": "a", "taps": None, "pair": [1, 2]}
OUTER = {"name": "x", "share": 1, "inner": INNER, "names": [["a", "b"], []], "facts": {"seed": [0]}}


def test_a_description_keeps_its_types():
    outer = read_dataclass(Outer, OUTER, source="f.json")
    assert outer == Outer("x", 1.0, Inner(3, "a", None, (1, 2)), (("a", "b"), ()), {"seed": [0]})
    inner = {**INNER, "taps": [1, 2, 3], "longest": 5}
    assert read_dataclass(Inner, inner, source="f.json") == Inner(3, "a", (1, 2, 3), (1, 2), 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, r"f.json: need a head; Outer.name must be of type str; got 3\. Train or convert it again"),
        ({"has_clip": 1}, "Outer.has_clip must be of type bool; got 1"),
        ({"inner": [1]}, "Outer.inner must be an object"),
        ({"inner": {**INNER, "size": True}}, "Outer.inner.size must be of type int; got True"),
        ({"inner": {**INNER, "size": 3.0}}, r"Outer.inner.size must be of type int; got 3\.0"),
        ({"inner": {**INNER, "kind": "c"}}, "Outer.inner.kind must be one of 'a', 'b'; got 'c'"),
        ({"inner": {**INNER, "pair": [1]}}, "Outer.inner.pair must have 2 values; got 1"),
        ({"inner": {**INNER, "taps": ["1"]}}, "an entry of Outer.inner.taps must be of type int; got '1'"),
        ({"inner": {"size": 3}}, "Outer.inner has missing fields: kind, taps, pair"),
        ({"others": 3}, "Outer has unknown fields: others"),
    ],
)
def test_invalid_fields_are_named(change, message):
    with pytest.raises(InputError, match=message):
        read_dataclass(Outer, {**OUTER, **change}, source="f.json: need a head")
