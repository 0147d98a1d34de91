"""The table of the public port. A new transport is a file or folder in `links`, and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.links import sse
from broker.links.poll import requests as poll
from broker.links.websocket import handshake as websocket
from broker.web import posts

if TYPE_CHECKING:
    from broker.links.route import ClientRoute
    from broker.web.health import Health
    from broker.web.posts import Post
    from broker.web.site import Site


def table(*, post: Post, health: Health, site: Site) -> dict[str, ClientRoute]:
    """Return the routes by path, with state of their own."""
    routes: list[ClientRoute] = [
        websocket.ROUTE,
        sse.ROUTE,
        poll.route(),
        *posts.routes(post),
        *health.routes(),
        *site.routes(),
    ]
    return {each.path: each for each in routes}
