from __future__ import annotations

from typing import Any

import pytest

from broker.client.resume import Resume


def subscribed(**fields: Any) -> dict[str, Any]:
    return {"channel": [], "refused": [], "position": "a-0", "recovered": True, "live": True} | fields


def asked(resume: Resume) -> list[dict[str, Any]]:
    return [request.payload for request in resume.requests.values()]


@pytest.mark.parametrize(
    ("kind", "payload", "position"),
    [
        ("event", {"channel": "a", "position": "a-7", "event": {}}, "a-7"),
        ("event", {"channel": "live.a", "event": {}}, "a-1"),
        ("event", {"channel": "a", "position": "a-7", "catch_up": 1}, "a-1"),
        ("subscribed", subscribed(position="a-7"), "a-7"),
        ("subscribed", subscribed(position="a-7", live=False, catch_up=2), "a-7"),
        ("subscription.live", {"channel": "a", "position": "a-7", "catch_up": 2}, "a-7"),
        ("pong", {"position": "a-7"}, "a-7"),
        ("pong", {}, "a-1"),
        ("gap", {"channel": "a", "from": "a-2", "to": "a-7", "reason": "trimmed"}, "a-7"),
        ("gap", {"channel": "live.a", "reason": "source"}, "a-1"),
        ("gap", {"channel": "a", "to": "a-7", "reason": "lag", "catch_up": 1}, "a-1"),
        ("connection.draining", {"reconnect_after_ms": 5, "position": "a-7"}, "a-7"),
        ("published", {"position": "a-7"}, "a-1"),
    ],
)
def test_what_moves_the_live_position(kind: str, payload: dict[str, Any], position: str) -> None:
    """The messages that carry the live position set it; marked ones and acknowledgements do not."""
    resume = Resume(position="a-1")
    resume.received(kind, payload, None)
    assert resume.position == position


def test_live_subscriptions_resume_as_one_list_from_the_live_position() -> None:
    """However they began: everything that is live is asked for at once, from the last position received."""
    resume = Resume()
    first = resume.ask(["orders.>"], {"last": 10})
    second = resume.ask(["me.>", "live.cursor"], {})
    resume.received("subscribed", subscribed(live=False), first)
    resume.received("subscribed", subscribed(), second)
    resume.received("event", {"channel": "orders.1", "position": "a-9"}, None)
    resume.again()
    assert asked(resume) == [{"channel": ["orders.>", "me.>", "live.cursor"], "position": "a-9"}]


def test_an_unfinished_catch_up_resumes_from_its_newest_marked_position() -> None:
    """A catch-up goes on where it was, beside what is live; a finished one is live like the others."""
    resume = Resume()
    live = resume.ask(["orders.>"], {})
    half = resume.ask(["chat.>"], {"since": "2026-01-01T00:00:00Z"})
    done = resume.ask(["news"], {"snapshot": True})
    resume.received("subscribed", subscribed(position="a-50"), live)
    resume.received("subscribed", subscribed(position="a-50", live=False, catch_up=1), half)
    resume.received("subscribed", subscribed(position="a-50", live=False, catch_up=2), done)
    resume.received("event", {"channel": "chat.1", "position": "a-3", "catch_up": 1}, None)
    resume.received("gap", {"channel": "chat.>", "to": "a-8", "reason": "limit", "catch_up": 1}, None)
    resume.received("event", {"channel": "news", "position": "a-20", "catch_up": 2}, None)
    resume.received("subscription.live", {"channel": "news", "position": "a-60", "catch_up": 2}, None)
    resume.again()
    assert asked(resume) == [
        {"channel": ["orders.>", "news"], "position": "a-60"},
        {"channel": ["chat.>"], "position": "a-8"},
    ]


def test_what_was_never_answered_is_asked_as_the_first_time() -> None:
    """A cut before `subscribed`, or before a catch-up's first frame, loses nothing of the start."""
    resume = Resume()
    resume.ask(["orders.>"], {"last": 3}, "latest")
    begun = resume.ask(["chat.>"], {"snapshot": True})
    resume.received("subscribed", subscribed(position="a-5", live=False, catch_up=1), begun)
    for _ in range(2):
        resume.again()
        assert asked(resume) == [
            {"channel": ["orders.>"], "last": 3, "lag": "latest"},
            {"channel": ["chat.>"], "snapshot": True},
        ]


def test_a_resume_that_was_cut_off_is_asked_again_from_the_same_position() -> None:
    """A pong of a new connection, before it has resumed, does not move where to resume from."""
    resume = Resume()
    resume.received("subscribed", subscribed(position="a-5"), resume.ask(["orders.>"], {}))
    resume.again()
    resume.received("pong", {"position": "a-90"}, None)
    resume.again()
    assert asked(resume) == [{"channel": ["orders.>"], "position": "a-5"}]


def test_lists_with_other_policies_stay_apart() -> None:
    """One `subscribe` has one lag policy, so there is one list for each."""
    resume = Resume()
    for channels, lag in ((["a"], None), (["b"], "latest"), (["c"], None)):
        resume.received("subscribed", subscribed(position="a-5"), resume.ask(channels, {}, lag))
    resume.again()
    assert asked(resume) == [
        {"channel": ["a", "c"], "position": "a-5"},
        {"channel": ["b"], "position": "a-5", "lag": "latest"},
    ]


def test_what_ended_is_not_asked_again() -> None:
    """Refused, unsubscribed by either side, or restarted: gone, also where the broker writes `me` out."""
    resume = Resume()
    resume.received("connection.authenticated", {"private": "users.alice"}, None)
    first = resume.ask(["a", "b", "me.x", "c", "d"], {})
    resume.received("subscribed", subscribed(refused=[{"channel": "a", "code": "forbidden"}]), first)
    resume.received("unsubscribed", {"channel": "users.alice.x", "code": "forbidden"}, None)
    resume.forget(["b"])
    resume.received("error", {"code": "forbidden", "retryable": False}, resume.ask(["e"], {}))
    resume.ask(["c"], {"last": 1})
    resume.again()
    assert asked(resume) == [{"channel": ["d"], "position": "a-0"}, {"channel": ["c"], "last": 1}]


def test_a_refusal_that_passes_is_asked_again() -> None:
    """A retryable error leaves the subscription wanted."""
    resume = Resume()
    resume.received("error", {"code": "unavailable", "retryable": True}, resume.ask(["a"], {"last": 1}))
    resume.again()
    assert asked(resume) == [{"channel": ["a"], "last": 1}]


def test_the_answer_to_our_own_unsubscribe_ends_nothing_newer() -> None:
    """`unsubscribed` may arrive after the same channel was asked for again."""
    resume = Resume()
    resume.ask(["a"], {})
    resume.forget(["a"])
    resume.ask(["a"], {"last": 1})
    resume.received("unsubscribed", {"channel": ["a"]}, "17")
    assert asked(resume) == [{"channel": ["a"], "last": 1}]


def test_a_durable_subscription_is_asked_for_by_its_name() -> None:
    """Apart from the live list and after it, with where it was beside it, should its cursor be gone."""
    resume = Resume()
    resume.received("subscribed", subscribed(position="a-5"), resume.ask(["x"], {"last": 3}, durable="d"))
    resume.received("subscribed", subscribed(position="a-5"), resume.ask(["y"], {}))
    resume.again()
    assert asked(resume) == [
        {"channel": ["y"], "position": "a-5"},
        {"channel": ["x"], "position": "a-5", "durable": "d"},
    ]


def test_what_a_durable_subscription_has_handed_over() -> None:
    """It begins before what was handed over; that is passed over, unless another subscription wants it."""
    resume = Resume()
    resume.received("subscribed", subscribed(position="a-5"), resume.ask(["x.*"], {}, durable="d"))
    resume.again()
    [key] = resume.requests
    resume.received("subscribed", subscribed(position="a-2"), key)
    assert resume.handed_over("x.1", "a-5", None)
    assert not resume.handed_over("x.1", "a-6", None)
    assert not resume.handed_over("x.1", "b-3", None)  # another stream
    assert not resume.handed_over("x.1", None, None)
    assert not resume.handed_over("y", "a-3", None)
    resume.received("event", {"position": "a-4"}, None)
    resume.again()  # cut again, before it was through: what was handed over first still counts
    assert asked(resume) == [{"channel": ["x.*"], "position": "a-5", "durable": "d"}]
    [key] = resume.requests
    resume.received("subscribed", subscribed(position="a-2"), key)
    resume.received("subscribed", subscribed(position="a-2"), resume.ask(["x.1"], {}))
    assert not resume.handed_over("x.1", "a-3", None)
    assert resume.handed_over("x.2", "a-3", None)


def test_a_durable_subscription_that_catches_up_again() -> None:
    """Beside live subscriptions what was handed over is told by the marked frames."""
    resume = Resume()
    first = resume.ask(["x"], {}, durable="d")
    resume.received("subscribed", subscribed(position="a-9", catch_up=1), first)
    resume.received("event", {"position": "a-4", "catch_up": 1}, None)
    resume.again()
    [key] = resume.requests
    resume.received("subscribed", subscribed(position="a-9", catch_up=2), key)
    assert resume.handed_over("x", "a-4", 2)
    assert not resume.handed_over("x", "a-5", 2)
    assert not resume.handed_over("x", "a-4", None)
