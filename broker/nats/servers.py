"""Which NATS server is tried next."""

from __future__ import annotations

import random
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING

import attrs

from broker.nats.login import Server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@attrs.define(eq=False)
class Servers:
    """The servers of the configuration, and those that the cluster has named since.

    The others of the cluster may have addresses that only they can reach, so they come after those of the
    configuration.
    """

    configured: list[Server]
    named: list[Server] = attrs.field(factory=list)
    left: Server | None = None

    @classmethod
    def parse(cls, urls: Sequence[str]) -> Servers:
        """Read the addresses, and shuffle them: not all brokers shall use one server. Raises `ValueError`."""
        return cls([Server.parse(url) for url in random.sample(urls, len(urls))])

    @property
    def count(self) -> int:
        return len(self.configured) + len(self.named)

    def rounds(self) -> Iterator[Server]:
        """Return whom to try, one after the other, for ever; the next call begins with another one."""
        self.configured.append(self.configured.pop(0))
        while True:
            yield from sorted([*self.configured, *self.named], key=lambda each: each == self.left)

    def name(self, addresses: Sequence[str], speaker: Server) -> None:
        """Take what `speaker` says of its cluster; whatever an address leaves open is as with the speaker."""
        self.left = None
        known = {(each.host, each.port) for each in self.configured}
        found = []
        for address in (each for each in addresses if "/" not in each):
            with suppress(ValueError):  # one that cannot be read is not worth the connection that we have
                found.append(Server.parse(address))
        self.named = [
            attrs.evolve(
                each,
                tls=speaker.tls,
                user=speaker.user,
                password=speaker.password,
                tls_name=speaker.tls_name if is_ip(each.host) else each.host,
            )
            for each in random.sample(found, len(found))
            if (each.host, each.port) not in known
        ]

    def leave(self, server: Server) -> bool:
        """Have a server that is about to stop tried last; return whether there is another one."""
        self.left = server
        return any(each != server for each in [*self.configured, *self.named])


def is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
