"""Which refusals the audit trail keeps."""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING

import pytest
import trio

from broker.config import Audit as Settings
from broker.features import audit
from broker.features.audit import Audit
from tests.support.asking import Granting, open_client
from tests.support.scripted_bus import ScriptedBus

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.bus.base import Message
    from broker.flow.client import Who


@pytest.fixture
def bus() -> ScriptedBus:
    return ScriptedBus(random=random.Random(1))


def codes(messages: Iterable[Message]) -> list[str]:
    """Of the refusals among some records."""
    records = [json.loads(body) for _, body, _ in messages]
    return [record["code"] for record in records if record["kind"] == "refused"]


def test_only_a_lack_of_rights_is_recorded(bus: ScriptedBus) -> None:
    """What a client may not do, and a token that is not accepted; no slip of a client, no shortage."""
    trail = Audit(bus, Settings(), "b1")
    given = ("bad_message", "forbidden", "token_expired", "rate_limited", "token_invalid", "unavailable")
    for number, code in enumerate((*given, "token_revoked")):
        who: Who = {"connection": str(number), "peer": "p", "tenant": "acme", "user": "u"}
        trail.refused(who, code=code, message=None, channel=None)
    assert codes(trail.waiting) == ["forbidden", "token_expired", "token_invalid", "token_revoked"]


def test_other_errors_use_up_nothing(bus: ScriptedBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many errors of another kind do not keep a refusal out; many refusals do, within a second."""
    monkeypatch.setattr(time, "monotonic", lambda: 1.0)
    trail = Audit(bus, Settings(), "b1")
    who: Who = {"connection": "c", "peer": "p", "tenant": "acme", "user": "u"}
    for code in ("bad_message", "forbidden"):
        for _ in range(10):
            trail.refused(who, code=code, message=None, channel=None)
    assert codes(trail.waiting) == ["forbidden"] * audit.REFUSALS_PER_SECOND


async def test_a_refusal_on_a_connection_and_without_one(
    autojump_clock: trio.abc.Clock, bus: ScriptedBus
) -> None:
    """Both reach the trail, and a malformed message reaches it from neither."""
    async with open_client(bus, room=1 << 20, verifier=Granting(changes={"publish": ()})) as client:
        post = client.supervisor.post
        await client.ask("publish", {"channel": "a"}, "error")
        await client.ask("publish", {"channel": "a", "event": 1}, "error")
        for body in (b'{"channel":"a"}', b'{"channel":"a","event":1}'):
            message = b'{"type":"publish","payload":%b}' % body
            await post(message, token="acme:v", tenant=None, peer="test")
        await trio.sleep(audit.GATHER_SECONDS * 2)
        assert codes(bus.noted) == ["forbidden"] * 2
