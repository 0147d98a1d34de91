"""Publishes and acknowledgements over cuts and refusals, without I/O."""

from __future__ import annotations

from typing import Any

import pytest

from broker.client.items import Published
from broker.client.outbox import IN_FLIGHT, RESEND_SECONDS, Outbox
from broker.client.resume import Resume
from broker.errors import BadMessage, BrokerError, InvalidPosition, TooLarge, Unavailable


def nothing() -> None: ...


def publish(outbox: Outbox, *channels: str) -> list[Any]:
    return [outbox.publish(channel, 1, None, nothing) for channel in channels]


def sent(outbox: Outbox, now: float = 0.0, resume: Resume | None = None) -> list[tuple[str, str]]:
    """What goes out: a channel or a position each, with its `messageId`."""
    frames = outbox.take(resume or Resume(), now)
    return [(payload.get("channel") or payload["position"], key) for _, payload, key in frames]


def durable(*, caught_up: bool = True) -> Resume:
    """A durable subscription `d` at position 5, or at 5 of a catch-up while the live position is 9."""
    resume = Resume()
    key = resume.ask(["a"], {}, durable="d")
    if caught_up:
        resume.received("subscribed", {"channel": ["a"], "position": "i-5"}, key)
    else:
        resume.received("subscribed", {"channel": ["a"], "position": "i-9", "catch_up": 1}, key)
        resume.received("event", {"position": "i-5", "catch_up": 1}, None)
    return resume


def refusal(code: str, **fields: Any) -> dict[str, Any]:
    return {"code": code, "message": "no", "retryable": False} | fields


def test_only_so_many_at_once() -> None:
    """A bounded number waits for answers; each answer makes room for the next, in order."""
    outbox = Outbox()
    publish(outbox, *(f"c{n}" for n in range(IN_FLIGHT + 2)))
    first = sent(outbox)
    assert [channel for channel, _ in first] == [f"c{n}" for n in range(IN_FLIGHT)]
    assert sent(outbox) == []
    assert outbox.answered("published", {"position": "i-1"}, first[0][1], 0.0)
    assert [channel for channel, _ in sent(outbox)] == [f"c{IN_FLIGHT}"]


def test_the_same_id_again_after_a_cut() -> None:
    """What had no answer is sent again, ahead of what was not sent, with the id that it had."""
    outbox = Outbox()
    [one, two] = publish(outbox, "one", "two")
    ids = [payload["id"] for _, payload, _ in outbox.take(Resume(), 0.0)]
    publish(outbox, "three")
    outbox.again(1.0)
    frames = list(outbox.take(Resume(), 1.0))
    assert [payload["channel"] for _, payload, _ in frames] == ["one", "two", "three"]
    assert [payload["id"] for _, payload, _ in frames][:2] == ids
    outbox.answered("published", {"position": "i-1", "duplicate": True}, frames[0][2], 1.0)
    assert one.result() == Published(position="i-1", duplicate=True)
    assert two.outcome is None


def test_what_must_not_be_sent_again() -> None:
    """A live event may have been seen; an id that the stream has forgotten would be stored twice."""
    outbox = Outbox()
    [live, old] = publish(outbox, "live.a", "a")
    sent(outbox, now=1.0)
    outbox.again(2.0)
    with pytest.raises(Unavailable, match="perhaps"):
        live.result()
    assert [channel for channel, _ in sent(outbox, now=2.0)] == ["a"]
    outbox.again(2.0 + RESEND_SECONDS)
    with pytest.raises(Unavailable, match="twice"):
        old.result()


def test_a_live_event_that_was_not_sent_yet_waits() -> None:
    """Only what was under way is given up."""
    outbox = Outbox()
    publish(outbox, "live.a")
    outbox.again(0.0)
    assert [channel for channel, _ in sent(outbox)] == ["live.a"]


def test_the_rate_that_the_broker_allows() -> None:
    """After a refusal for rate there is a pause, and from then on one publish in the time that was named."""
    outbox = Outbox()
    publish(outbox, "a", "b", "c")
    frames = sent(outbox)
    outbox.answered("published", {}, frames[0][1], 0.0)
    limited = refusal("rate_limited", retryable=True, retry_after_ms=600)
    outbox.answered("error", limited, frames[2][1], 0.0)
    outbox.answered("error", limited, frames[1][1], 0.0)
    assert (sent(outbox, now=0.5), outbox.due()) == ([], 0.6)
    assert [channel for channel, _ in sent(outbox, now=0.6)] == ["b"]
    assert (sent(outbox, now=1.1), outbox.due()) == ([], 1.2)
    assert [channel for channel, _ in sent(outbox, now=1.2)] == ["c"]


def test_refusals() -> None:
    """The error has the class of its code; one that nobody knows is a `BrokerError` all the same."""
    outbox = Outbox()
    promises = publish(outbox, "a", "b")
    (_, first), (_, second) = sent(outbox)
    outbox.answered("error", refusal("bad_message"), first, 0.0)
    outbox.answered("error", refusal("novelty"), second, 0.0)
    with pytest.raises(BadMessage, match="no"):
        promises[0].result()
    with pytest.raises(BrokerError, match="no"):
        promises[1].result()


def test_too_big() -> None:
    """After 1009 the largest message is given up, and the others are sent again."""
    outbox = Outbox()
    small = outbox.publish("a", "x", None, nothing)
    big = outbox.publish("a", "x" * 1000, None, nothing)
    sent(outbox)
    outbox.too_big()
    outbox.again(0.0)
    with pytest.raises(TooLarge):
        big.result()
    assert small.outcome is None
    assert len(sent(outbox)) == 1


def test_withdrawn() -> None:
    """Nobody waits for it: it is not sent."""
    outbox = Outbox()
    [one, _] = publish(outbox, "one", "two")
    outbox.withdraw(one)
    assert [channel for channel, _ in sent(outbox)] == ["two"]


def test_of_acknowledgements_the_newest() -> None:
    """One is under way at a time; of those made meanwhile the newest follows, and answers them all."""
    outbox, resume = Outbox(), durable()
    promises = [outbox.acknowledge("d", f"i-{n}", nothing) for n in (2, 1)]
    [(position, key)] = sent(outbox, resume=resume)
    assert position == "i-2"
    promises += [outbox.acknowledge("d", f"i-{n}", nothing) for n in (3, 4)]
    assert sent(outbox, resume=resume) == []
    outbox.answered("acknowledged", {}, key, 0.0)
    assert [promise.outcome for promise in promises] == ["i-2", "i-2", None, None]
    [(position, key)] = sent(outbox, resume=resume)
    assert position == "i-4"
    outbox.answered("acknowledged", {}, key, 0.0)
    assert [promise.outcome for promise in promises] == ["i-2", "i-2", "i-4", "i-4"]
    assert not outbox.awaited


@pytest.mark.parametrize("caught_up", [True, False])
def test_an_acknowledgement_waits_until_the_broker_has_come_so_far(caught_up: bool) -> None:
    """On a new connection a durable subscription begins further back than what is acknowledged."""
    outbox, resume = Outbox(), durable(caught_up=caught_up)
    outbox.acknowledge("d", "i-6", nothing)
    assert sent(outbox, resume=resume) == []
    mark = {} if caught_up else {"catch_up": 1}
    resume.received("event", {"position": "i-6"} | mark, None)
    assert [position for position, _ in sent(outbox, resume=resume)] == ["i-6"]
    outbox.again(0.0)
    assert [position for position, _ in sent(outbox, resume=resume)] == ["i-6"]


def test_an_acknowledgement_that_is_refused() -> None:
    """Who waits hears it; what nobody waits for is left to the application; for now is not for ever."""
    outbox, resume = Outbox(), durable()
    promise = outbox.acknowledge("d", "other-1", nothing)
    [(_, key)] = sent(outbox, resume=resume)
    busy = refusal("unavailable", retryable=True, retry_after_ms=500)
    assert outbox.answered("error", busy, key, 0.0)
    assert (sent(outbox, 0.4, resume), outbox.due()) == ([], 0.5)
    [(_, key)] = sent(outbox, 0.5, resume)
    assert outbox.answered("error", refusal("invalid_position"), key, 1.0)
    with pytest.raises(InvalidPosition):
        promise.result()
    outbox.acknowledge("d", "other-1", None)
    [(_, key)] = sent(outbox, 1.0, resume)
    assert not outbox.answered("error", refusal("invalid_position"), key, 1.0)


def test_the_end() -> None:
    """Everybody who waits hears of it."""
    outbox = Outbox()
    promises = [*publish(outbox, "a", "b"), outbox.acknowledge("d", "i-1", nothing)]
    sent(outbox)
    outbox.end(Unavailable("over"))
    for promise in promises:
        with pytest.raises(Unavailable, match="over"):
            promise.result()
