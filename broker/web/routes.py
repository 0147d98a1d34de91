"""The table of the public port. A new transport is a file or folder in `links`, and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.links import sse
from broker.links.poll import requests as poll
from broker.links.websocket import handshake as websocket
from broker.web import posts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.links.route import ClientRoute
    from broker.session.requests import Table
    from broker.web.posts import Post


def protocol(post: Post, requests: Table) -> list[ClientRoute]:
    """Return the routes by which clients speak the protocol, with state of their own."""
    return [websocket.ROUTE, sse.ROUTE, poll.route(), *posts.routes(post, requests)]


def table(*groups: Iterable[ClientRoute]) -> dict[str, ClientRoute]:
    """Return routes by their paths."""
    return {route.path: route for group in groups for route in group}
