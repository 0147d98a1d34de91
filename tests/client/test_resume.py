"""How the Python client resumes: the cases that the browser client is held to, and what only it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from broker.client.asking import Asking
from broker.client.gate import Gate
from broker.client.resume import Resume

SHARED = json.loads((Path(__file__).parent / "resume.json").read_text())
CASES = {case["name"]: case["steps"] for case in SHARED["cases"]}


def subscribed(**fields: Any) -> dict[str, Any]:
    return {"channel": [], "refused": [], "position": "a-0", "recovered": True, "live": True} | fields


def asked(resume: Resume) -> list[dict[str, Any]]:
    return [request.payload for request in resume.requests.values()]


@attrs.define(eq=False)
class Driver:
    """A client whose broker does what a case says; `tests/client/resume.json` explains the steps."""

    resume: Resume = attrs.field(factory=Resume)
    events: list[str] = attrs.field(factory=list)

    def begin(self) -> None:
        self.resume.received("connection.authenticated", {"private": "users.alice"}, None)
        self.resume.again()

    def full(self, channels: list[str]) -> list[str]:
        return sorted(self.resume.expanded(channel) for channel in channels)

    def find(self, channels: list[str]) -> str:
        """Return the newest request for these channels."""
        return [
            key
            for key, each in self.resume.requests.items()
            if self.full(each.channels) == self.full(channels)
        ][-1]

    def sent(self) -> None:
        for request in self.resume.requests.values():
            request.sent = True

    def want(self, channels: list[str], step: dict[str, Any]) -> None:
        self.resume.ask(channels, step.get("start", {}), step.get("lag"), step.get("durable"))
        self.sent()

    def answer(self, channels: list[str], step: dict[str, Any]) -> None:
        key = self.find(channels)
        self.resume.received("subscribed", subscribed(channel=channels, **step["payload"]), key)

    def error(self, channels: list[str], step: dict[str, Any]) -> None:
        self.resume.received("error", step["payload"], self.find(channels))

    def hear(self, kind: str, step: dict[str, Any]) -> None:
        payload = step["payload"]
        self.resume.received(kind, payload, None)
        place = payload.get("channel"), payload.get("position"), payload.get("catch_up")
        if kind == "event" and not self.resume.handed_over(*place):
            self.events.append(payload["position"])

    def end(self, channels: list[str], step: dict[str, Any]) -> None:
        self.resume.forget(channels)

    def cut(self, yes: bool, step: dict[str, Any]) -> None:
        self.begin()
        self.sent()

    def asked(self, expected: list[dict[str, Any]], step: dict[str, Any]) -> None:
        found = [{**each, "channel": self.full(each["channel"])} for each in asked(self.resume)]
        meant = [{**each, "channel": sorted(each["channel"])} for each in expected]
        assert sorted(found, key=lambda each: each["channel"]) == sorted(
            meant, key=lambda each: each["channel"]
        )

    def taken(self, expected: list[str], step: dict[str, Any]) -> None:
        assert self.events == expected
        self.events = []

    def position(self, expected: str, step: dict[str, Any]) -> None:
        assert self.resume.position == expected


@pytest.mark.parametrize("name", CASES)
def test_resuming(name: str) -> None:
    """As the browser client does."""
    driver = Driver()
    driver.begin()
    for step in CASES[name]:
        action = next(iter(step))
        getattr(driver, action)(step[action], step)


@pytest.mark.parametrize(("kind", "payload", "position"), SHARED["moves"])
def test_what_moves_the_live_position(kind: str, payload: dict[str, Any], position: str) -> None:
    """The messages that carry the live position set it; marked ones and acknowledgements do not."""
    resume = Resume(position="a-1")
    resume.received(kind, payload, None)
    assert resume.position == position


def test_lists_come_in_order() -> None:
    """What was live comes first and as one list, since its position is the connection's; then the others."""
    resume = Resume()
    resume.received("subscribed", subscribed(position="a-5"), resume.ask(["x"], {"last": 3}, durable="d"))
    half = resume.ask(["c"], {"last": 1})
    resume.received("subscribed", subscribed(position="a-5", catch_up=1), half)
    resume.received("subscribed", subscribed(position="a-5"), resume.ask(["y"], {}))
    resume.again()
    assert [each["channel"] for each in asked(resume)] == [["y"], ["x"], ["c"]]


def test_asking_again_without_a_start_keeps_the_floor() -> None:
    """The broker has one subscription of a channel; the last lag policy counts, and the highest floor."""
    resume = Resume()
    resume.received("subscribed", subscribed(position="a-5"), resume.ask(["x"], {"position": "a-9"}))
    resume.received("subscribed", subscribed(position="a-5"), resume.ask(["x"], {}, "latest"))
    resume.again()
    assert asked(resume) == [{"channel": ["x"], "position": "a-9", "lag": "latest"}]


def test_a_list_that_was_cut_in_two_keeps_its_floor() -> None:
    """A message holds only so many channels."""
    resume = Resume()
    asking = Asking(resume, Gate(), lambda _: 0.0)
    key = resume.ask(["x", "y"], {"position": "a-9"})
    asking.split(resume.requests[key], 1)
    assert [(each.channels, each.floor) for each in resume.requests.values()] == [
        (["x"], "a-9"),
        (["y"], "a-9"),
    ]


def test_the_answer_to_our_own_unsubscribe_ends_nothing_newer() -> None:
    """`unsubscribed` may arrive after the same channel was asked for again."""
    resume = Resume()
    resume.ask(["a"], {})
    resume.forget(["a"])
    resume.ask(["a"], {"last": 1})
    resume.received("unsubscribed", {"channel": ["a"]}, "17")
    assert asked(resume) == [{"channel": ["a"], "last": 1}]
