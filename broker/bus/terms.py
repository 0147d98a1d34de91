"""Compare a stream with the configuration: what cannot work, what differs, what may be changed.

Pure. `found` is a stream's configuration as the server reports it.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from broker.bus.base import Change
from broker.subjects import covers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from broker.bus.streams import Wanted

FIXED = {"workqueue"}  # values that cannot be changed
# The option of `nats stream edit` for each; the others cannot be edited.
OPTIONS = {
    "retention": "--retention limits",
    "allow_direct": "--allow-direct",
    "no_ack": "--ack",
    "allow_msg_ttl": "--allow-msg-ttl",
}
LIMITS = {"max_age", "max_bytes", "max_msgs_per_subject"}  # where 0 or less means no limit
SPANS = {"max_age", "duplicate_window"}  # in nanoseconds
# The value of a setting that the server does not report; others are off.
UNMENTIONED: Mapping[str, object] = {"persist_mode": "default", "republish": None, "subjects": None}


def held(found: Mapping[str, Any], key: str) -> Any:
    return found.get(key, UNMENTIONED.get(key, False))


def unusable(found: Mapping[str, Any], wanted: Wanted) -> str | None:
    """Return why the broker cannot use the stream and how to resolve that, or None when it can."""
    name = wanted.name
    for key, value in wanted.required.items():
        theirs = held(found, key)
        if theirs == value:
            continue
        ours = " or ".join(dict.fromkeys([wanted.keys["name"], *filter(None, [wanted.keys.get(key)])]))
        if mirror := found.get("mirror"):
            fault = f"is a mirror of {mirror['name']}, which keeps no subjects"
            return f"the stream {name} {fault}. Set {ours} to use another one"
        if key == "subjects":
            [subject] = value
            fault = f"keeps {theirs or 'nothing that can be published'} and not {subject} alone"
            way = f"`nats stream edit {name} --subjects '{subject}'`"
        else:
            fault = f"has {key}={theirs!r}, not {value!r}"
            way = way_out(name, key, theirs, value)
        return f"the stream {name} {fault}. Set {ours} to use another one, or change this one: {way}"
    return None


def way_out(name: str, key: str, theirs: object, value: object) -> str:
    """Return the commands that change the setting (https://github.com/nats-io/natscli)."""
    if key == "republish" and isinstance(value, dict):
        source, place = value["src"], value["dest"]
        return f"`nats stream edit {name} --republish-source '{source}' --republish-destination '{place}'`"
    if key in OPTIONS and theirs not in FIXED:
        return f"`nats stream edit {name} {OPTIONS[key]}`"
    return (
        "this setting cannot be edited. Stop the brokers, "
        f"`nats stream backup {name} {name}.backup`, put {json.dumps(key)}: {json.dumps(value)} into the "
        f"config of {name}.backup/backup.json, `nats stream rm {name}`, `nats stream restore {name}.backup`"
    )


def changes(found: Mapping[str, Any], settings: Mapping[str, Any], wanted: Wanted) -> Iterator[Change]:
    """Yield the settings in which the stream differs."""
    for key, value in settings.items():
        if not alike(key, theirs := held(found, key), value):
            yield Change(
                setting=key,
                key=wanted.keys.get(key),
                found=shown(key, theirs),
                wanted=shown(key, value),
                loses=shrinks(key, theirs, value),
            )


def all_changes(found: Mapping[str, Any], wanted: Wanted) -> tuple[Change, ...]:
    """Return every difference from the configuration."""
    return tuple(changes(found, {**wanted.required, **wanted.settings}, wanted))


def plan(
    found: Mapping[str, Any], wanted: Wanted, left: Mapping[str, Any], *, consent: bool
) -> dict[str, Any]:
    """Return what to change in a stream of ours, whose settings we last `left` so.

    Without `consent`, change only settings that are still as we left them, since somebody may have changed
    others by hand, and never shrink anything, so that brokers with different configurations do not undo each
    other's work for ever. With it, change every difference.
    """
    whole = {**wanted.required, **wanted.settings}
    if consent:
        changed = {key: value for key, value in whole.items() if not alike(key, held(found, key), value)}
    else:
        changed = {
            key: whole[key]
            for each in changes(found, wanted.settings, wanted)
            if not each.loses and (key := each.setting) in left and alike(key, left[key], held(found, key))
        }
    becomes = {**found, **changed}
    age = becomes.get("max_age", 0)
    if 0 < age < becomes.get("duplicate_window", 0):  # the server refuses that
        changed["duplicate_window"] = age
    return changed


def alike(key: str, one: Any, other: Any) -> bool:
    """Return whether two values mean the same: "no limit" can be written in several ways."""
    return bounded(one) == bounded(other) if key in LIMITS else bool(one == other)


def shrinks(key: str, theirs: Any, value: Any) -> bool:
    """Return whether the change loses something: events, replicas, remembered ids, or subjects that are
    stored or republished.
    """
    if key in LIMITS:
        return bounded(value) < bounded(theirs)
    if key == "subjects":
        return not all(any(covers(ours, each) for ours in value) for each in theirs or ())
    if key == "republish":
        return bool(theirs)
    return key in ("num_replicas", "duplicate_window") and value < theirs


def bounded(limit: Any) -> float:
    return limit if limit and limit > 0 else math.inf


def shown(key: str, value: Any) -> str:
    """Return a value in readable form."""
    if key in LIMITS and math.isinf(bounded(value)):
        return "unlimited"
    if key in SPANS:
        return span(value / 1e9)
    return value if isinstance(value, str) else json.dumps(value)


def span(seconds: float) -> str:
    """Return a duration as written in the configuration: "7d"."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"
