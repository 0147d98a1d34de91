"""Who may see what: the protocol's rules once more, by the simplest code that does it."""

from __future__ import annotations


def matches(pattern: str, channel: str) -> bool:
    """Whether a channel lies within a pattern; `users` and `live` are walls that no wildcard passes."""
    wanted, found = pattern.split("."), channel.split(".")
    for index, token in enumerate(wanted):
        if index >= len(found):
            return False
        walled = found[index] == "users" and found[:index] in ([], ["live"])
        walled |= found[index] == "live" and index == 0
        if token in ("*", ">") and walled:
            return False
        if token == ">":
            return True
        if token not in ("*", found[index]):
            return False
    return len(wanted) == len(found)


def entitled(patterns: list[str], denied: list[str], tenant: str, to: str, channel: str) -> bool:
    """Whether a subscriber in `tenant` gets an event that was published to the tenant `to` (or `_all`)."""
    if to not in (tenant, "_all"):
        return False
    return any(matches(each, channel) for each in patterns) and not any(
        matches(each, channel) for each in denied
    )
