"""What a broker shows at `/metrics`, for comparing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.support.raw import ask

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_SECONDS = 45


@attrs.frozen
class Scrape:
    """One scrape: samples by name, each with its labels."""

    samples: dict[str, list[tuple[dict[str, str], float]]]

    def total(self, name: str, **labels: str) -> float:
        """The sum over the samples that have these labels; the name must be there."""
        return sum(value for found, value in self.samples[name] if labels.items() <= found.items())


async def scrape(admin: str) -> Scrape:
    answer = await ask(admin, "/metrics")
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for each in family.samples:
            samples.setdefault(each.name, []).append((each.labels, each.value))
    return Scrape(samples)


async def scraped(admin: str, condition: Callable[[Scrape], bool]) -> Scrape:
    """The first scrape for which something holds."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not condition(found := await scrape(admin)):
            await trio.sleep(0.02)
    return found
