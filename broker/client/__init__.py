"""Clients for services and tests: `Publisher` stores events in NATS, a session is a WebSocket client.

`Session` is for Trio, `AsyncioSession` for asyncio; they behave alike.
"""

from broker.backoff import Backoff
from broker.client.asyncio_session import AsyncioSession
from broker.client.checks import TOMBSTONE
from broker.client.collection import Collection, Document
from broker.client.items import (
    DocumentChanged,
    DocumentConflict,
    DocumentLost,
    DocumentRejected,
    Duplicate,
    Event,
    Gap,
    Item,
    Member,
    Message,
    News,
    Page,
    PastEvent,
    PresenceChanged,
    Published,
    Reconnecting,
    SessionEnded,
    UnknownOutcome,
)
from broker.client.publisher import Publisher, Stored
from broker.client.room import Room
from broker.client.session import Session
from broker.errors import BadMessage, InvalidChannel, TooLarge, Unavailable

__all__ = [
    "TOMBSTONE",
    "AsyncioSession",
    "Backoff",
    "BadMessage",
    "Collection",
    "Document",
    "DocumentChanged",
    "DocumentConflict",
    "DocumentLost",
    "DocumentRejected",
    "Duplicate",
    "Event",
    "Gap",
    "InvalidChannel",
    "Item",
    "Member",
    "Message",
    "News",
    "Page",
    "PastEvent",
    "PresenceChanged",
    "Published",
    "Publisher",
    "Reconnecting",
    "Room",
    "Session",
    "SessionEnded",
    "Stored",
    "TooLarge",
    "Unavailable",
    "UnknownOutcome",
]
