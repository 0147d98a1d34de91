"""What is refused where it is asked for, before anything is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.backoff import Backoff
from broker.client import TOMBSTONE, checks
from broker.client.engine import Engine
from broker.errors import BadMessage, BrokerError, InvalidChannel, InvalidPosition, NotSubscribed

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | TEXT
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)  # fmt: skip
HALF = "half an emoji \ud83d"


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def endless() -> list[Any]:
    value: list[Any] = [1]
    value += [value, value]
    return value


@given(JSON)
def test_json_passes(value: Any) -> None:
    """Every value of JSON comes out as it was, as a value and as bytes; only None has to be written out."""
    if value is not None:
        assert json.loads(checks.event_json(value)) == value
    assert json.loads(checks.event_json(json.dumps(value, ensure_ascii=False).encode())) == value


def test_a_tombstone_is_said() -> None:
    """Not by None, which is also what a function returns that forgot to."""
    assert checks.event_json(TOMBSTONE) == checks.event_json(b"null") == b"null"
    assert checks.event_json({"n": None}) == b'{"n":null}'
    with pytest.raises(TypeError, match="TOMBSTONE"):
        checks.event_json(None)


@pytest.mark.parametrize(
    ("event", "error", "where"),
    [
        (float("nan"), ValueError, "event: nan"),
        ({"a": [0, {"b": float("inf")}]}, ValueError, "event['a'][1]['b']: inf"),
        ([float("-inf")], ValueError, "event[0]: -inf"),
        ({1, 2}, TypeError, "event: set is not a JSON type"),
        ({"a": b"x"}, TypeError, "event['a']: bytes is not a JSON type"),
        ([1j], TypeError, "event[0]: complex"),
        ([object()], TypeError, "event[0]: object"),
        (bytearray(b"1"), TypeError, "event: bytearray"),
        ({7: 1}, TypeError, "event: the key 7 is not a string"),
        ({"a": {(1, 2): 1}}, TypeError, "event['a']: the key (1, 2)"),
        (HALF, ValueError, "event: holds a lone surrogate at character 14"),
        ({"a": ["", HALF]}, ValueError, "event['a'][1]: holds a lone surrogate"),
        ({"a": {HALF: 1}}, ValueError, "event['a']: the key 'half an emoji \\ud83d' holds"),
        (2**64, ValueError, "event: an integer of more than 64 bits"),
        ([-(2**63) - 1], ValueError, "event[0]: an integer"),
        (nested(1025), ValueError, "nested deeper than 1024"),
        (endless(), ValueError, "or containing itself"),
        (b"{", BadMessage, "event: not JSON"),
        (b'"\xff"', BadMessage, "event: not JSON"),
        (b"NaN", BadMessage, "event: not JSON"),
        (b"1e999", BadMessage, "event: not JSON"),
        (b'"\\ud83d"', BadMessage, "event: not JSON"),
        (b"123456789012345678901234567890", ValueError, "more than 64 bits"),
        (b"[" * 100_000, BadMessage, "event: not JSON"),
    ],
)
def test_what_is_no_event(event: Any, error: type[Exception], where: str) -> None:
    """It is said where in the event, and nothing is turned into something else."""
    with pytest.raises(error) as refused:
        checks.event_json(event)
    assert where in str(refused.value)


def test_as_deep_as_the_broker_takes() -> None:
    """1,024 is the protocol page's depth."""
    assert checks.event_json(nested(1024)) == b"[" * 1024 + b"1" + b"]" * 1024


@pytest.fixture
def engine() -> Engine:
    return Engine(url="ws://test/ws", tenant=None, renewable=True, backoff=Backoff())


@pytest.mark.parametrize(
    ("channels", "options", "error"),
    [
        ((), {}, TypeError),
        ((7,), {}, TypeError),
        ((["a", "b"],), {}, TypeError),
        (("a..b",), {}, InvalidChannel),
        (("a", HALF), {}, InvalidChannel),
        (("a",), {"last": 1, "snapshot": True}, ValueError),
        (("a",), {"last": 0}, BadMessage),
        (("a",), {"last": True}, TypeError),
        (("a",), {"last": 1.5}, TypeError),
        (("a",), {"since": "yesterday"}, BadMessage),
        (("a",), {"since": "2026-01-01T00:00:00"}, BadMessage),
        (("a",), {"since": 7}, TypeError),
        (("a",), {"position": ""}, InvalidPosition),
        (("a",), {"position": HALF}, ValueError),
        (("a",), {"lag": "sometimes"}, ValueError),
        (("live.a",), {"lag": "replay"}, ValueError),
        (("a",), {"durable": "two words"}, BadMessage),
        (("a",), {"durable": HALF}, ValueError),
        (("a",), {"durable": ""}, BadMessage),
    ],
)
def test_what_is_no_subscription(engine: Engine, channels: Any, options: Any, error: type[Exception]) -> None:
    """Nothing of it is kept, and nothing is said to the broker."""
    lag, durable = options.pop("lag", None), options.pop("durable", None)
    with pytest.raises(error):
        engine.subscribe(channels, options, lag, durable)
    assert not engine.resume.requests


@pytest.mark.parametrize("channels", [(), (7,), ("a..b",), (HALF,)])
def test_what_cannot_be_let_go(engine: Engine, channels: Any) -> None:
    """The names are looked at as those of a subscription are."""
    with pytest.raises((TypeError, BrokerError)):
        engine.unsubscribe(channels)


@pytest.mark.parametrize(
    ("channel", "event_id", "error"),
    [
        (7, None, TypeError),
        ("a.*", None, InvalidChannel),
        (HALF, None, InvalidChannel),
        ("a", "", BadMessage),
        ("a", "é" * 33, BadMessage),
        ("a", 7, TypeError),
        ("a", HALF, ValueError),
    ],
)
def test_where_and_as_what_it_cannot_be_published(
    engine: Engine, channel: Any, event_id: Any, error: type[Exception]
) -> None:
    """Channels and ids that the broker would refuse."""
    with pytest.raises(error):
        engine.publish(channel, 1, event_id, True, lambda: None)
    assert not engine.outbox.awaited


def test_what_cannot_be_acknowledged(engine: Engine) -> None:
    """A name that nobody has, and a position that is none."""
    for durable in ("d", HALF, 7):
        with pytest.raises(NotSubscribed):
            engine.acknowledge(durable, "a-1", None)  # type: ignore[arg-type]
    engine.subscribe(("a",), {}, None, "d")
    for position in (7, HALF, ""):
        with pytest.raises((TypeError, ValueError, InvalidPosition)):
            engine.acknowledge("d", position, None)  # type: ignore[arg-type]
    assert not engine.outbox.acknowledgements


def test_what_was_published_is_as_it_was(engine: Engine) -> None:
    """What happens to the value afterwards is another matter."""
    event = {"n": 1}
    engine.publish("a", event, None, True, lambda: None)
    event["n"] = float("nan")  # type: ignore[assignment]
    assert engine.outbox.waiting[0].event == b'{"n":1}'
