"""Faults in one connection, at each seam between it and the rest of the broker.

A client chooses its fault by the name of its user, "SEAM:once" or "SEAM:ever"; all others are left alone. The
broker knows nothing of it: `install` puts something before the methods of its classes.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from functools import wraps
from inspect import isfunction
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import attrs

from broker.actors import tenant
from broker.actors.connection import Connection
from broker.actors.services import Services
from broker.actors.supervisor import Supervisor
from broker.actors.tenant import Tenant
from broker.actors.wheel import Wheel
from broker.features.audit import Audit
from broker.features.durable.feature import Durables
from broker.features.publishing import Publishing
from broker.features.subscriptions.feature import Subscriptions
from broker.flow.flow import Flow
from broker.flow.sending import Sending
from broker.session.session import Session
from tests.support.sabotage import Sabotage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def first(*given: Any) -> Any:
    return given[0]


def second(*given: Any) -> Any:
    return given[1]


@attrs.frozen
class Seam:
    """A method of a class, and which of its arguments belongs to a connection."""

    owner: Any
    method: str
    part: Callable[..., Any] = first

    @property
    def name(self) -> str:
        return f"{self.owner.__name__.rpartition('.')[2]}.{self.method}"


# Which of them are reached depends on what the client does.
ACTORS = (
    *(Seam(Connection, name) for name in (
        "begin", "open", "heed", "receive", "attempt", "authenticate", "rights_changed", "carry_out",
        "note_refusal", "tell", "sending", "progressed", "when_due", "heartbeat",
        "heed_notice", "say_goodbye", "position", "note_position", "return_budgets", "held_up", "fell_behind",
    )),
    *(Seam(Session, name) for name in ("receive", "timers", "settings_changed", "recount")),
    *(Seam(Flow, name) for name in (
        "push", "hold", "release", "settle", "try_send", "took", "short", "give", "held_up", "fall_behind",
        "render", "rejoin",
        "subscribe", "begin", "go_on", "join", "set_policies", "leave", "drop",
        "set_pace", "change_lane", "enlist", "withdraw", "pass_on", "give_due", "give_held", "note_read",
        "swap", "sent", "attach", "enter", "quit", "detach", "move", "position", "place", "offer", "keep",
        "write",
    )),
    *(Seam(tenant, name) for name in ("overflows", "overflow")),
    *(Seam(Tenant, name, second) for name in ("enter", "leave")),
    *(Seam(Sending, name) for name in (
        "read_on", "ask", "step_held", "step_unstored", "step_lead", "step_stored", "step_beside", "page",
        "fetch", "announce", "finish",
    )),
    *(Seam(Wheel, name, second) for name in ("schedule", "cancel")),
    *(Seam(Subscriptions, name, second) for name in ("subscribe", "join", "unsubscribe", "rights_changed")),
    *(Seam(Durables, name, second) for name in ("acknowledge", "begin", "left", "detach")),
    Seam(Publishing, "publish", second),
    Seam(Services, "check", second),
    Seam(Supervisor, "note_end", second),
    Seam(Audit, "note"),
)  # fmt: skip
TRANSPORT = (
    "receive", "send_nowait", "send_some", "frame", "ping", "close", "behind", "limit_messages", "linger",
    "abort",
)  # fmt: skip


def transports(*owners: type) -> tuple[Seam, ...]:
    """What is between a link and its connection, where it is a method."""
    pairs = [(owner, name) for owner in owners for name in TRANSPORT]
    return tuple(Seam(*each) for each in pairs if isfunction(getattr(*each, None)))


@attrs.define(eq=False)
class Seams:
    """`hits` counts the faults by the user, and `arms` the calls that could have been one."""

    users: WeakKeyDictionary[Any, str] = attrs.Factory(WeakKeyDictionary)
    hits: Counter[str] = attrs.Factory(Counter)
    armed: bool = True

    def user_of(self, part: Any) -> str | None:
        """Whose fault it would be."""
        match part:
            case Flow():
                return self.user_of(part.client)
            case Sending():
                return self.user_of(part.flow)
            case None:
                return None
        if (user := getattr(part, "user", None)) is not None:  # a principal
            return str(user)
        try:
            return self.users.get(part)
        except TypeError:  # no weak references
            return None

    def install(self, seams: Iterable[Seam], patch: Callable[[Any, str, Any], None] = setattr) -> None:
        for seam in seams:
            patch(seam.owner, seam.method, self.before(seam))
        real = Connection.run

        async def run(connection: Connection) -> None:
            self.enlist(connection)
            await real(connection)

        patch(Connection, "run", run)

    def before(self, seam: Seam) -> Callable[..., Any]:
        real = getattr(seam.owner, seam.method)

        @wraps(real)
        def call(*given: Any, **options: Any) -> Any:
            user = options.get("user") if seam.owner is Audit else self.user_of(seam.part(*given))
            name, _, how = (user or "").partition(":")
            if self.armed and name == seam.name and user and (how == "ever" or not self.hits[user]):
                self.hits[user] += 1
                raise Sabotage(user)
            return real(*given, **options)

        return call

    def enlist(self, connection: Connection) -> None:
        if connection.token is None:
            return
        user = subject_of(connection.token)
        link = getattr(connection.transport, "link", None)
        for part in (connection, connection.session, connection.transport, link):
            if part is not None:
                self.users[part] = user


def subject_of(token: str) -> str:
    """The user that a token names: a JWT, or what a scripted verifier takes for one."""
    parts = token.split(".")
    if len(parts) == 3 and parts[0].startswith("eyJ"):
        padded = parts[1] + "=" * (-len(parts[1]) % 4)
        return str(json.loads(base64.urlsafe_b64decode(padded))["sub"])
    return token.partition(":")[2]
