"""Clients for services and tests: `Publisher` stores events in NATS, a session is a WebSocket client.

`Session` is for Trio, `AsyncioSession` for asyncio; they behave alike.
"""

from broker.backoff import Backoff
from broker.client.asyncio_session import AsyncioSession
from broker.client.checks import TOMBSTONE
from broker.client.items import (
    Duplicate,
    Event,
    Gap,
    Item,
    Message,
    Page,
    PastEvent,
    Published,
    Reconnecting,
    SessionEnded,
    UnknownOutcome,
)
from broker.client.publisher import Publisher, Stored
from broker.client.session import Session
from broker.errors import BadMessage, InvalidChannel, TooLarge, Unavailable

__all__ = [
    "TOMBSTONE",
    "AsyncioSession",
    "Backoff",
    "BadMessage",
    "Duplicate",
    "Event",
    "Gap",
    "InvalidChannel",
    "Item",
    "Message",
    "Page",
    "PastEvent",
    "Published",
    "Publisher",
    "Reconnecting",
    "Session",
    "SessionEnded",
    "Stored",
    "TooLarge",
    "Unavailable",
    "UnknownOutcome",
]
