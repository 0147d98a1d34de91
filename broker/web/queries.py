"""The query of a request by the names that its page knows."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from broker.web.problems import Refused
from broker.wire.codec import nearest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

COMMON = ("access_token", "tenant")
NO_CHANNEL = "channel: at least one is required: ?channel=orders.>&channel=…"
CHANNELS = 1000  # the most parameters that are looked at; a connection has fewer subscriptions


def fields(
    query: str,
    known: Collection[str],
    *,
    repeated: Collection[str] = (),
    spellings: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, list[str]]:
    """The values of each parameter, one but for those that may be `repeated`. Raises `Refused`.

    `spellings` has other names, in lower case, for known ones.
    """
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=CHANNELS)
    except ValueError:
        raise Refused(400, "The query is not UTF-8, or has too many parameters.") from None
    found: dict[str, list[str]] = {}
    names = (*known, *repeated, *COMMON)
    for given, value in pairs:
        name = spellings.get(given.lower(), given)
        if name not in names:
            raise Refused(400, f"{name[:40]}: unknown parameter{nearest(name, names)}")
        if name in found and name not in repeated:
            raise Refused(400, f"{name}: stands there twice.")
        found.setdefault(name, []).append(value)
    return found
