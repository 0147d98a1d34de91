"""The table of requests, of features that have nothing to carry them out with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from broker.actors.connection import AUTHENTICATE, PING
from broker.config import Limits
from broker.features.calls import Calls
from broker.features.durable.feature import Durables
from broker.features.history.feature import Histories
from broker.features.presence.feature import Presence
from broker.features.publishing import Publishing
from broker.features.state.changing import Changing
from broker.features.state.reading import Reading
from broker.features.state.rules import Rules
from broker.features.subscriptions.feature import Subscriptions
from broker.session.requests import Call, table
from broker.subjects import Names

if TYPE_CHECKING:
    from broker.session.requests import Effect

NOTHING: Any = None
FEATURES = (
    Subscriptions(NOTHING, NOTHING),
    Publishing(NOTHING, NOTHING, str),
    Calls(NOTHING, NOTHING, NOTHING),
    Histories(NOTHING, NOTHING),
    Reading(NOTHING, Names(), Rules(), NOTHING, str),
    Changing(
        bus=NOTHING,
        keyed=NOTHING,
        names=Names(),
        rules=Rules(),
        incarnation=str,
        head=int,
        limits=Limits(),
        meters=NOTHING,
        features=tuple,
    ),
    Presence(NOTHING, Names(), "b", Limits()),
    Durables(NOTHING, NOTHING),
)
TABLE = table([AUTHENTICATE, PING, *(each for feature in FEATURES for each in feature.requests())])


@attrs.define(eq=False)
class Stood:
    """Subscriptions of a client without a flow: what a test says that stands."""

    held: dict[str, tuple[str, ...]] = attrs.Factory(dict)

    def subscriptions(self) -> dict[str, tuple[str, ...]]:
        return self.held

    def filtered(self) -> set[str]:
        return set()


def wish_of(effect: Effect) -> Any:
    """What a message comes to: a wish, or what is said of it."""
    return effect.wish if isinstance(effect, Call) else effect
