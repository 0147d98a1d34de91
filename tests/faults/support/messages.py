"""Messages that no client should send, each with the error that it meets."""

from __future__ import annotations

import json
from typing import Any

from tests.e2e.test_input import BAD

PUBLISH_BYTES = 10240


def message(kind: str, **payload: Any) -> str:
    return json.dumps({"type": kind, "payload": payload})


def of_event(event: str) -> str:
    """A message that publishes this text, which need not be JSON."""
    return f'{{"type":"publish","payload":{{"channel":"a","event":{event}}}}}'


# Messages that end nothing, and the code of the error that they meet.
MESSAGES: dict[str, tuple[str, str]] = {
    **{
        f"bad {number}: {text[:50]}": (text, "unknown_type" if "no.such" in text else "bad_message")
        for number, text in enumerate(BAD)
    },
    # doubled keys: what is judged is what is used, the last one
    "type twice": ('{"type":"ping","type":"no.such"}', "unknown_type"),
    "payload twice": ('{"type":"ping","payload":{},"payload":[]}', "bad_message"),
    "channel twice": (
        '{"type":"publish","payload":{"channel":"a","channel":"$JS.API.>","event":1}}',
        "invalid_channel",
    ),
    "tenant_id twice": (of_event('{"metadata":{"tenant_id":"rude","tenant_id":"acme"}}'), "forbidden"),
    # numbers
    "1e999": (of_event("1e999"), "bad_message"),
    "-Infinity": (of_event("-Infinity"), "bad_message"),
    "2^64": (of_event(f"{2**64}"), "bad_message"),
    "-2^63 - 1": (of_event(f"[{{}}, {-(2**63) - 1}]"), "bad_message"),
    "last of 2^64": (message("subscribe", channel="a", last=2**64), "bad_message"),
    "last of 0": (message("subscribe", channel="a", last=0), "bad_message"),
    "last of -1": (message("subscribe", channel="a", last=-1), "bad_message"),
    "last of more than the limit": (message("subscribe", channel="a", last=1001), "bad_message"),
    # Unicode and depth
    "lone surrogate in an event": (of_event('"\\ud800"'), "bad_message"),
    "lone surrogate in a key": (of_event('{"\\udfff":1}'), "bad_message"),
    "lone surrogate in a channel": ('{"type":"subscribe","payload":{"channel":"\\ud800"}}', "bad_message"),
    "60,000 levels": ("[" * 60_000, "bad_message"),
    # rights
    "of another user": (message("publish", channel="users.bob.a", event=1), "forbidden"),
    "of another user, live": (message("publish", channel="live.users.bob.a", event=1), "forbidden"),
    "subscribe to another user": (message("subscribe", channel="users.bob.>"), "forbidden"),
    "subscribe to all users": (message("subscribe", channel="users.>"), "forbidden"),
    "a denied channel": (message("publish", channel="denied.a", event=1), "forbidden"),
    "outside the right": (message("publish", channel="elsewhere", event=1), "forbidden"),
    "a tenant of its own": (of_event('{"metadata":{"tenant_id":"acme"}}'), "forbidden"),
    "tenant as a field": (message("publish", channel="a", event=1, tenant="acme"), "bad_message"),
    "user as a field": (message("publish", channel="a", event=1, user="bob"), "bad_message"),
    "publisher as a field": (message("publish", channel="a", event=1, publisher={}), "bad_message"),
    "headers": (message("publish", channel="a", event=1, headers={"Nats-Rollup": "all"}), "bad_message"),
    # sizes and ids
    "an event over the size": (message("publish", channel="a", event="x" * PUBLISH_BYTES), "too_large"),
    "a live event over the size": (
        message("publish", channel="live.a", event="x" * PUBLISH_BYTES),
        "too_large",
    ),
    "an empty id": (message("publish", channel="a", event=1, id=""), "bad_message"),
    "a long id": (message("publish", channel="a", event=1, id="\u00e9" * 33), "bad_message"),
    # positions
    **{
        f"position {text!r}": (message("subscribe", channel="a", position=text), "invalid_position")
        for text in (
            "",
            "x",
            "-1",
            "a--1",
            "a-1 ",
            "a-01",
            "A-1",
            "a-1e3",
            "a-" + "9" * 21,
            "a-1\n",
            "\u0661-1",
        )
    },
    "position as a number": (message("subscribe", channel="a", position=-1), "bad_message"),
    "since": (message("subscribe", channel="a", since="yesterday"), "bad_message"),
    "since without a zone": (message("subscribe", channel="a", since="2026-01-01T00:00:00"), "bad_message"),
    "acknowledge nothing": (message("acknowledge", durable="d", position="a-1"), "not_subscribed"),
    "unsubscribe nothing": (message("unsubscribe", channel="a"), "not_subscribed"),
    "durable": (message("subscribe", channel="a", durable="a b"), "bad_message"),
}
