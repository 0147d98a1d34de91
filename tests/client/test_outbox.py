"""Publishes and acknowledgements over cuts and refusals, without I/O."""

from __future__ import annotations

from typing import Any

import pytest

from broker.client.gate import Allowed, Gate
from broker.client.items import Duplicate, Published, UnknownOutcome
from broker.client.outbox import IN_FLIGHT, Outbox
from broker.client.resume import Resume
from broker.errors import BadMessage, BrokerError, InvalidPosition, TooLarge, Unavailable


def nothing() -> None: ...


def publish(outbox: Outbox, *channels: str) -> list[Any]:
    return [outbox.publish(channel, b"1", None, True, nothing) for channel in channels]


def outbox_of(**limits: float) -> Outbox:
    """One whose broker has said these limits, with a wall clock that stands still."""
    return Outbox(gate=Gate(Allowed(**limits)), wall=lambda: 0.0)


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
    outbox.cut(1.0)
    frames = list(outbox.take(Resume(), 1.0))
    assert [payload["channel"] for _, payload, _ in frames] == ["one", "two", "three"]
    assert [payload["id"] for _, payload, _ in frames][:2] == ids
    outbox.answered("published", {"position": "i-1", "duplicate": True}, frames[0][2], 1.0)
    assert one.result() == Published(position="i-1", duplicate=True)
    assert two.outcome is None


@pytest.mark.parametrize(("window", "within"), [(600, 539), (100, 69), (2, None)])
def test_another_try_only_while_the_stream_compares_ids(window: float, within: float | None) -> None:
    """Within the broker's window, with time to spare, it is sent again; after it nobody knows."""
    outbox = outbox_of(duplicate_window_seconds=window)
    [old] = publish(outbox, "a")
    sent(outbox, now=0.0)
    if within is not None:
        outbox.cut(within)
        assert [channel for channel, _ in sent(outbox, now=within)] == ["a"]
        outbox.cut(within)
        assert sent(outbox, now=within + 2.0) == []
    else:
        outbox.cut(0.1)
    with pytest.raises(UnknownOutcome, match="perhaps it was sent: a: no answer") as perhaps:
        old.result()
    assert perhaps.value.event_id


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_the_clock_that_says_more(jump: float) -> None:
    """A closed lid stops the monotonic clock, the wall's may be set back: then the other one counts."""
    walls = iter([0.0, jump, jump, jump])
    outbox = Outbox(gate=Gate(Allowed()), wall=lambda: next(walls))
    [promise] = publish(outbox, "a")
    sent(outbox, now=0.0)
    elapsed = 3600.0 if jump < 0 else 1.0
    outbox.cut(elapsed)
    assert sent(outbox, now=elapsed) == []
    with pytest.raises(UnknownOutcome):
        promise.result()


def test_refused_for_now_until_the_window_is_over() -> None:
    """NATS may have stored it each time that the broker had no answer: not for ever is it tried again."""
    outbox = outbox_of(duplicate_window_seconds=300)
    [promise] = publish(outbox, "a")
    now, tries = 0.0, 0
    while promise.outcome is None and now < 1000:
        for _, key in sent(outbox, now):
            tries += 1
            busy = refusal("unavailable", retryable=True, retry_after_ms=5000)
            assert outbox.answered("error", busy, key, now)
        now += 5.0
    assert 10 < tries < 60
    with pytest.raises(UnknownOutcome):
        promise.result()


def test_refused_for_its_rate_it_was_not_sent() -> None:
    """However long that goes on: nothing of it is stored, and the next try is as good as the first."""
    outbox = outbox_of()
    [promise] = publish(outbox, "a")
    for now in range(0, 3600, 60):
        [(_, key)] = sent(outbox, now=float(now))
        outbox.answered("error", refusal("rate_limited", retryable=True, retry_after_ms=1000), key, now)
    [(_, key)] = sent(outbox, now=3700.0)
    outbox.answered("published", {"position": "i-1"}, key, 3700.0)
    assert promise.result() == Published(position="i-1", duplicate=False)


def test_a_live_event_is_sent_once() -> None:
    """Nobody compares ids there: after a cut, and where the broker could not say, it was perhaps sent."""
    outbox = Outbox()
    cut, unavailable = publish(outbox, "live.a", "live.b")
    frames = sent(outbox)
    outbox.answered("error", refusal("unavailable", retryable=True), frames[1][1], 0.0)
    outbox.cut(1.0)
    assert sent(outbox, now=10.0) == []
    for promise in (cut, unavailable):
        with pytest.raises(UnknownOutcome, match="a live event is not sent again"):
            promise.result()


def test_a_duplicate_of_another_event() -> None:
    """Under the first try's id something else is stored: this event is not, and that is no success."""
    outbox = Outbox()
    promise = outbox.publish("a", b"1", "order-7", True, nothing)
    [(_, key)] = sent(outbox)
    outbox.answered("published", {"position": "i-3", "duplicate": True}, key, 0.0)
    with pytest.raises(Duplicate, match="order-7") as duplicate:
        promise.result()
    assert (duplicate.value.position, duplicate.value.event_id) == ("i-3", "order-7")


def test_a_duplicate_of_its_own_try() -> None:
    """After a refusal that may have come too late `duplicate` is the truth, and a success."""
    outbox = Outbox()
    [promise] = publish(outbox, "a")
    [(_, key)] = sent(outbox)
    outbox.answered("error", refusal("internal", retryable=True, retry_after_ms=1), key, 0.0)
    [(_, key)] = sent(outbox, now=1.0)
    outbox.answered("published", {"position": "i-3", "duplicate": True}, key, 1.0)
    assert promise.result() == Published(position="i-3", duplicate=True)


def test_refused_after_a_try_without_an_answer() -> None:
    """A refusal says nothing about the earlier try."""
    outbox = Outbox()
    [promise] = publish(outbox, "a")
    sent(outbox)
    outbox.cut(1.0)
    [(_, key)] = sent(outbox, now=1.0)
    outbox.answered("error", refusal("forbidden"), key, 1.0)
    with pytest.raises(UnknownOutcome, match="an earlier try had no answer; now no"):
        promise.result()


def test_what_the_broker_does_not_take() -> None:
    """What is over a limit that it has said is not sent, and what is behind it is."""
    outbox = outbox_of(message_bytes=200, publish_bytes=100)
    event = outbox.publish("a", b'"%s"' % (b"x" * 99), None, True, nothing)
    message = outbox.publish("a." + "b" * 99, b"1", None, True, nothing)
    publish(outbox, "c")
    assert [channel for channel, _ in sent(outbox)] == ["c"]
    with pytest.raises(TooLarge, match="101 bytes; the broker's `publish_bytes` is 100"):
        event.result()
    with pytest.raises(TooLarge, match="the broker's `message_bytes` is 200"):
        message.result()


def test_the_rate_is_kept_to_before_it_is_refused() -> None:
    """As much at once and a minute as the broker allows, and a bit less."""
    outbox = outbox_of(messages_per_minute=60, messages_burst=10)
    publish(outbox, *("a" for _ in range(100)))
    times, now = [], 0.0
    while now < 60.0:
        for _, key in sent(outbox, now):
            times.append(now)
            outbox.answered("published", {"position": "i-1"}, key, now)
        now = max(outbox.due(now), now + 0.001)
    assert times.count(0.0) == 8
    assert 50 < len(times) <= 58


def test_a_live_event_that_was_not_sent_yet_waits() -> None:
    """Only what was under way is given up."""
    outbox = Outbox()
    publish(outbox, "live.a")
    outbox.cut(0.0)
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
    assert (sent(outbox, now=0.5), outbox.due(0.5)) == ([], 0.6)
    assert [channel for channel, _ in sent(outbox, now=0.6)] == ["b"]
    assert (sent(outbox, now=1.1), outbox.due(1.1)) == ([], 1.2)
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
    small = outbox.publish("a", b'"x"', None, True, nothing)
    big = outbox.publish("a", b'"%s"' % (b"x" * 1000), None, True, nothing)
    sent(outbox)
    outbox.too_big()
    outbox.cut(0.0)
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
    outbox.cut(0.0)
    assert [position for position, _ in sent(outbox, resume=resume)] == ["i-6"]


def test_an_acknowledgement_that_is_refused() -> None:
    """Who waits hears it; what nobody waits for is left to the application; for now is not for ever."""
    outbox, resume = Outbox(), durable()
    promise = outbox.acknowledge("d", "other-1", nothing)
    [(_, key)] = sent(outbox, resume=resume)
    busy = refusal("unavailable", retryable=True, retry_after_ms=500)
    assert outbox.answered("error", busy, key, 0.0)
    assert (sent(outbox, 0.4, resume), outbox.due(0.4)) == ([], 0.5)
    [(_, key)] = sent(outbox, 0.5, resume)
    assert outbox.answered("error", refusal("invalid_position"), key, 1.0)
    with pytest.raises(InvalidPosition):
        promise.result()
    outbox.acknowledge("d", "other-1", None)
    [(_, key)] = sent(outbox, 1.0, resume)
    assert not outbox.answered("error", refusal("invalid_position"), key, 1.0)


def test_the_end() -> None:
    """Everybody who waits hears of it; of what was under way nobody knows."""
    outbox = Outbox()
    [sent_one] = publish(outbox, "a")
    sent(outbox)
    promises = [*publish(outbox, "b"), outbox.acknowledge("d", "i-1", nothing)]
    outbox.end(Unavailable("over"))
    for promise in promises:
        with pytest.raises(Unavailable, match="over"):
            promise.result()
    with pytest.raises(UnknownOutcome, match="over"):
        sent_one.result()
