"""The streams for events and dead letters: made when missing, adjusted, or refused with what mends them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import structlog

from broker.bus.api import STREAM_NOT_FOUND, ApiError, JetStream
from broker.bus.bridge import away

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker import config
    from broker.subjects import Names

log = structlog.get_logger("broker.bus")

# Settings that the broker cannot do without. NATS writes nothing for the defaults of some.
REQUIRED: Mapping[str, object] = {
    "retention": "limits",
    "allow_direct": True,
    "no_ack": False,
    "sealed": False,
    "storage": "file",
    "persist_mode": "default",  # of nats-server 2.12 on; "async" acknowledges what it may still lose
}
LEFT_OUT: Mapping[str, object] = {"persist_mode": "default"}
OWN_SECONDS = 60.0
OWN_BYTES = 1024 * 1024
FIXED = {"workqueue"}  # values that a stream has for ever
# The option of `nats stream edit` that mends each; the others cannot be changed.
OPTIONS = {"retention": "--retention limits", "allow_direct": "--allow-direct", "no_ack": "--ack"}


def events(section: config.Stream, names: Names) -> dict[str, Any]:
    """The configuration of the stream that keeps the events."""
    return {
        "name": section.name,
        "subjects": [f"{names.events}.>"],
        # With it any publisher could purge the history of all tenants by a header.
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": True,
        "max_age": nanoseconds(section.max_age),
        "max_msgs_per_subject": section.max_msgs_per_subject,
        "duplicate_window": nanoseconds(shorter(section.duplicate_window, section.max_age)),
        "num_replicas": section.replicas,
        **({} if section.max_bytes is None else {"max_bytes": section.max_bytes}),
    }


def dead_letters(section: config.Stream, names: Names) -> dict[str, Any]:
    """The configuration of the stream that keeps what could not be delivered.

    Its duplicate window is as long as its memory: each broker stores a dead letter, under the same id,
    and one is kept.
    """
    return {
        "name": section.deadletter_name,
        "subjects": [f"{names.deadletter}.>"],
        "max_age": nanoseconds(section.deadletter_max_age),
        "max_bytes": section.deadletter_max_bytes,
        "duplicate_window": nanoseconds(section.deadletter_max_age),
        "num_replicas": section.replicas,
    }


def audit(section: config.Audit, replicas: int) -> dict[str, Any]:
    """The configuration of the stream that keeps the audit trail."""
    return {
        "name": section.name,
        "subjects": [f"{section.prefix}.>"],
        "max_age": nanoseconds(section.max_age),
        "max_bytes": section.max_bytes,
        "num_replicas": replicas,
    }


def own(section: config.Stream, names: Names) -> dict[str, Any]:
    """The configuration of the stream of the canaries: of each broker the last one, for a minute.

    What it has stored it publishes again (https://docs.nats.io/nats-concepts/jetstream/streams#republish), so
    that a canary comes back without a consumer.
    """
    return {
        "name": section.own_name,
        "subjects": [f"{names.own}.canary.*"],
        "republish": {"src": f"{names.own}.canary.*", "dest": f"{names.own}.seen.{{{{wildcard(1)}}}}"},
        "max_age": nanoseconds(OWN_SECONDS),
        "max_bytes": OWN_BYTES,
        "max_msgs_per_subject": 1,
        "duplicate_window": nanoseconds(OWN_SECONDS),
        "num_replicas": section.replicas,
    }


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def shorter(window: float, age: float) -> float:
    """A duplicate window that the server accepts: not longer than the age, where 0 is for ever."""
    return min(window, age) if age else window


async def ensure(jetstream: JetStream, wanted: Mapping[str, Any]) -> None:
    """Makes the stream when it is missing, else sets its limits to those wanted, and nothing else.

    Raises `Unavailable`; where only the operator can mend it the message says by which command.
    """
    name = wanted["name"]
    try:
        found = (await jetstream.call(f"STREAM.INFO.{name}"))["config"]
    except ApiError as error:
        if error.number != STREAM_NOT_FOUND:
            raise
        await create(jetstream, wanted)
        return
    if fault := unusable(found, wanted):
        raise away(fault)
    if changed := {key: value for key, value in wanted.items() if found.get(key) != value}:
        await jetstream.call(f"STREAM.UPDATE.{name}", {**found, **changed})
        log.info("stream_adjusted", stream=name, **changed)


async def create(jetstream: JetStream, wanted: Mapping[str, Any]) -> None:
    # A server that does not know a setting refuses it, so what it takes for granted is not said.
    said = {key: value for key, value in REQUIRED.items() if key not in LEFT_OUT}
    await jetstream.call(f"STREAM.CREATE.{wanted['name']}", {**said, **wanted})
    log.info("stream_created", stream=wanted["name"])


def unusable(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Why the broker cannot work with the stream, or None: one sentence with the way out."""
    name = wanted["name"]
    if found.get("subjects") != wanted["subjects"]:
        subject = wanted["subjects"][0]
        return (
            f"the stream {name} keeps {found.get('subjects')} and not {subject} alone: "
            f"`nats stream edit {name} --subjects '{subject}'`"
        )
    for key, value in REQUIRED.items():
        held = found.get(key, LEFT_OUT.get(key, False))
        if held != value:
            return f"the stream {name} has {key}={held!r}, not {value!r}: {way_out(name, key, held)}"
    return None


def way_out(name: str, key: str, held: object) -> str:
    """How an operator gets the setting changed (https://github.com/nats-io/natscli)."""
    if key in OPTIONS and held not in FIXED:
        return f"`nats stream edit {name} {OPTIONS[key]}`"
    value = json.dumps(REQUIRED[key])
    return (
        "that cannot be edited. Stop the brokers, "
        f"`nats stream backup {name} {name}.backup`, put {json.dumps(key)}: {value} into the config of "
        f"{name}.backup/backup.json, `nats stream rm {name}`, `nats stream restore {name}.backup`"
    )
