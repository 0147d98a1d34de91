"""For services and tests: `Publisher` (asyncio) stores events, `Session` (Trio) receives them."""

from broker.client.publisher import Publisher, Stored
from broker.client.session import Backoff, Event, Item, Message, Reconnecting, Session, SessionEnded

__all__ = [
    "Backoff",
    "Event",
    "Item",
    "Message",
    "Publisher",
    "Reconnecting",
    "Session",
    "SessionEnded",
    "Stored",
]
