"""Requests to services over cuts, refusals and time, without I/O."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from broker.client.gate import Allowed, Gate
from broker.client.questions import Questions
from broker.errors import (
    BrokerError,
    Forbidden,
    Rejected,
    Timeout,
    TooLarge,
    Unavailable,
    UnknownType,
)


def nothing() -> None: ...


def questions_of(**limits: float) -> Questions:
    """Those to a broker that has said these limits."""
    return Questions(Gate(Allowed(**limits)))


def ask(questions: Questions, *methods: str, until: float = 5.0, data: bytes = b"1") -> list[Any]:
    return [questions.ask(method, data, None, until, nothing) for method in methods]


def sent(questions: Questions, now: float = 0.0) -> list[tuple[str, str]]:
    """What goes out: a method each, with its `messageId`."""
    return [(payload["method"], key) for _, payload, key in questions.take(now)]


def refusal(code: str, **fields: Any) -> dict[str, Any]:
    return {"code": code, "message": "no", "retryable": False} | fields


def test_the_message() -> None:
    """Of the time that a request has, the broker is told what is left of it when it is sent."""
    questions = questions_of()
    questions.ask("a.b", b'{"n":1}', "x-1", 5.0, nothing)
    ((kind, payload, _),) = questions.take(1.5)
    assert kind == "request"
    assert bytes(payload.pop("data")) == b'{"n":1}'
    assert payload == {"method": "a.b", "id": "x-1", "timeout_ms": 3500}
    ask(questions, "b", until=2.0)
    assert [each["timeout_ms"] for _, each, _ in questions.take(1.9999)] == [1]


def test_it_is_answered() -> None:
    questions = questions_of()
    one, other = ask(questions, "one", "other")
    (_, first), (_, second) = sent(questions)
    assert questions.answered("reply", {"data": None}, second, 0.1)
    assert other.result() == {"data": None}
    assert one.outcome is None
    assert questions.answered("reply", {"data": [1]}, first, 0.1)
    assert one.result() == {"data": [1]}
    assert not questions.awaited
    assert not questions.answered("reply", {"data": [1]}, first, 0.1)


def test_sent_once() -> None:
    """A cut leaves in doubt what was sent, which is not sent again; what was not waits for the next one."""
    questions = questions_of(requests_in_flight=1)
    one, other = ask(questions, "one", "other")
    assert [method for method, _ in sent(questions)] == ["one"]
    questions.cut()
    with pytest.raises(Timeout, match="one: the connection was lost before the answer"):
        one.result()
    assert [method for method, _ in sent(questions)] == ["other"]
    assert other.outcome is None
    questions.cut()
    assert sent(questions) == []


def test_its_time() -> None:
    """Sent, nobody knows; not sent, certainly no service has it, and it is not sent later."""
    questions = questions_of(requests_in_flight=1)
    one, other = ask(questions, "one", "other")
    ((_, key),) = sent(questions)
    for promise in (one, other):
        questions.expire(promise)
    with pytest.raises(Timeout, match="one: no answer in time"):
        one.result()
    with pytest.raises(Unavailable, match="other: not sent in time"):
        other.result()
    assert not questions.awaited
    # The broker still works on it, and its answer is nobody's.
    (third,) = ask(questions, "third")
    assert sent(questions) == []
    assert questions.answered("error", refusal("timeout"), key, 5.0)
    assert [method for method, _ in sent(questions)] == ["third"]
    assert third.outcome is None


def test_what_is_about_to_end_is_not_sent() -> None:
    """At the end of its time, before somebody has given it up."""
    questions = questions_of()
    ask(questions, "a", until=5.0)
    assert (sent(questions, 5.0), questions.due(5.0)) == ([], inf)


def test_refused_for_its_rate() -> None:
    """It was not sent on: it waits its turn, ahead of what came later; one that nobody waits for does not."""
    questions = questions_of(requests_in_flight=2)
    ask(questions, "one", until=60.0)
    (gone,) = ask(questions, "gone", until=60.0)
    ask(questions, "later", until=60.0)
    limited = refusal("rate_limited", retryable=True, retry_after_ms=600)
    for _, key in sent(questions):
        if len(questions.sent) == 2:
            questions.withdraw(gone)
        assert questions.answered("error", limited, key, 0.0)
    assert (sent(questions, 0.5), questions.due(0.5)) == ([], 0.6)
    assert [method for method, _ in sent(questions, 0.6)] == ["one", "later"]


def test_the_rate_is_kept_to_before_it_is_refused() -> None:
    """As much at once and a second as the broker allows, and a bit less."""
    questions = questions_of(calls_per_second=1, calls_burst=10, requests_in_flight=inf)
    ask(questions, *("a" for _ in range(100)), until=100.0)
    times, now = [], 0.0
    while now < 60.0:
        times += [now for _ in sent(questions, now)]
        now = max(questions.due(now), now + 0.001)
    assert times.count(0.0) == 8
    assert 50 < len(times) <= 58


ERRORS: dict[str, tuple[dict[str, Any], type[BrokerError]]] = {
    "rejected": ({"status": 409}, Rejected),
    "forbidden": ({}, Forbidden),
    "unavailable": ({"retryable": True, "retry_after_ms": 1000}, Unavailable),
    "timeout": ({}, Timeout),
    "unknown_type": ({}, UnknownType),
    "novelty": ({"retryable": True}, BrokerError),
}


@pytest.mark.parametrize("code", ERRORS)
def test_errors(code: str) -> None:
    """Each has the class of its code, and none is repeated, also what the caller may repeat."""
    questions, (fields, kind) = questions_of(), ERRORS[code]
    (promise,) = ask(questions, "a")
    ((_, key),) = sent(questions)
    assert questions.answered("error", refusal(code, **fields), key, 0.0)
    with pytest.raises(kind, match="no") as raised:
        promise.result()
    assert getattr(raised.value, "status", None) == fields.get("status")
    assert sent(questions, 60.0) == []


def test_what_a_service_refuses_is_no_failed_message() -> None:
    """It uses nothing up of what may be published, as what the broker itself refuses does."""
    questions = questions_of(messages_per_minute=1, messages_burst=2)
    for code in ("rejected", "timeout", "bad_answer", "forbidden"):
        assert questions.gate.opens("publishes", 0.0) == 0.0
        ask(questions, "a")
        ((_, key),) = sent(questions)
        assert questions.answered("error", refusal(code), key, 0.0)
    assert questions.gate.opens("publishes", 0.0) > 0.0


def test_too_large() -> None:
    """What is over a limit that the broker has said is not sent, and what is behind it is."""
    questions = questions_of(message_bytes=200)
    (big,) = ask(questions, "big", data=b'"%s"' % (b"x" * 200))
    ask(questions, "small")
    assert [method for method, _ in sent(questions)] == ["small"]
    with pytest.raises(TooLarge, match="the broker's `message_bytes` is 200"):
        big.result()


def test_withdrawn() -> None:
    """Nobody waits for it: it is not sent."""
    questions = questions_of()
    one, _ = ask(questions, "one", "two")
    questions.withdraw(one)
    assert [method for method, _ in sent(questions)] == ["two"]


def test_the_end() -> None:
    """Of what was sent nobody knows; the rest is refused with the reason."""
    questions = questions_of(requests_in_flight=1)
    one, other = ask(questions, "one", "other")
    sent(questions)
    questions.end(Forbidden("over"))
    with pytest.raises(Timeout, match="one: over"):
        one.result()
    with pytest.raises(Forbidden, match="over"):
        other.result()
