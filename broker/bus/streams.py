"""The streams and buckets that the broker works with, as configured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker import config
    from broker.subjects import Names

# What the broker cannot do without, in every stream.
REQUIRED: Mapping[str, object] = {
    "retention": "limits",
    "allow_direct": True,
    "no_ack": False,
    "sealed": False,
    "storage": "file",
    "persist_mode": "default",  # since nats-server 2.12; "async" acknowledges what may still be lost
}
UNSAID = {"persist_mode"}  # when creating: a server refuses settings that it does not know
OWN_SECONDS = 60.0
MARKER_SECONDS = 7 * 86400.0  # for which a deleted key can still be seen
GONE_SECONDS = 60.0  # for which it can be seen that somebody has gone
OWN_BYTES = 1024 * 1024


@attrs.frozen(kw_only=True)
class Wanted:
    """A stream as wanted: what it must be (`required`), and what it is made with (`settings`).

    `initial` is set on creation and never compared: useful where the server supports it. All are fields of
    the server's stream configuration; `keys` maps them to the keys of the broker's configuration.
    """

    name: str
    required: Mapping[str, Any]
    settings: Mapping[str, Any]
    keys: Mapping[str, str]
    initial: Mapping[str, Any] = attrs.Factory(dict)

    @property
    def creation(self) -> dict[str, Any]:
        """The configuration to create it with."""
        said = {key: value for key, value in self.required.items() if key not in UNSAID}
        return {"name": self.name, **said, **self.settings, **self.initial}

    @property
    def version(self) -> str:
        """An identifier of exactly these settings."""
        return json.dumps(self.settings, sort_keys=True)


def events(section: config.Stream, names: Names) -> Wanted:
    """Return the stream that keeps the events."""
    return Wanted(
        name=section.name,
        required={"subjects": [f"{names.events}.>"], **REQUIRED},
        settings={
            # If allowed, any publisher could purge the events of all tenants by a header.
            "allow_rollup_hdrs": False,
            "allow_msg_ttl": True,
            "max_age": nanoseconds(section.max_age),
            "max_msgs_per_subject": section.max_msgs_per_subject,
            "duplicate_window": nanoseconds(min(section.duplicate_window, section.max_age)),
            "num_replicas": section.replicas,
            **({} if section.max_bytes is None else {"max_bytes": section.max_bytes}),
        },
        keys={
            "name": "stream.name",
            "subjects": "subjects.events",
            "max_age": "stream.max_age",
            "max_bytes": "stream.max_bytes",
            "max_msgs_per_subject": "stream.max_msgs_per_subject",
            "duplicate_window": "stream.duplicate_window",
            "num_replicas": "stream.replicas",
        },
    )


def dead_letters(section: config.Stream, names: Names) -> Wanted:
    """Return the stream that keeps what could not be delivered.

    Its duplicate window is as long as its `max_age`: each broker stores a dead letter under the same id, and
    one copy is kept.
    """
    return Wanted(
        name=section.deadletter_name,
        required={"subjects": [f"{names.deadletter}.>"], **REQUIRED},
        settings={
            "max_age": nanoseconds(section.deadletter_max_age),
            "max_bytes": section.deadletter_max_bytes,
            "duplicate_window": nanoseconds(section.deadletter_max_age),
            "num_replicas": section.replicas,
        },
        keys={
            "name": "stream.deadletter_name",
            "subjects": "subjects.deadletter",
            "max_age": "stream.deadletter_max_age",
            "max_bytes": "stream.deadletter_max_bytes",
            "duplicate_window": "stream.deadletter_max_age",
            "num_replicas": "stream.replicas",
        },
    )


def audit(section: config.Audit, replicas: int) -> Wanted:
    """Return the stream that keeps the audit trail."""
    return Wanted(
        name=section.name,
        required={"subjects": [f"{section.prefix}.>"], **REQUIRED},
        settings={
            "max_age": nanoseconds(section.max_age),
            "max_bytes": section.max_bytes,
            "num_replicas": replicas,
        },
        keys={
            "name": "audit.name",
            "subjects": "audit.prefix",
            "max_age": "audit.max_age",
            "max_bytes": "audit.max_bytes",
            "num_replicas": "stream.replicas",
        },
    )


def own(section: config.Stream, names: Names) -> Wanted:
    """Return the stream of the canaries: the last one of each broker, for a minute.

    It republishes what it has stored (https://docs.nats.io/nats-concepts/jetstream/streams#republish), so
    that a canary comes back without a consumer.
    """
    back = {"src": f"{names.own}.canary.*", "dest": f"{names.own}.seen.{{{{wildcard(1)}}}}"}
    return Wanted(
        name=section.own_name,
        required={"subjects": [f"{names.own}.canary.*"], "republish": back, **REQUIRED},
        settings={
            "max_age": nanoseconds(OWN_SECONDS),
            "max_bytes": OWN_BYTES,
            "max_msgs_per_subject": 1,
            "duplicate_window": nanoseconds(OWN_SECONDS),
            "num_replicas": section.replicas,
        },
        keys={
            "name": "stream.own_name",
            "subjects": "subjects.own",
            "republish": "subjects.own",
            "num_replicas": "stream.replicas",
        },
    )


def state(section: config.State, names: Names, replicas: int) -> Wanted:
    """Return the stream that keeps the documents."""
    return Wanted(
        name=section.name,
        required={
            "subjects": [f"{names.state}.>"],
            **REQUIRED,
            "max_msgs_per_subject": 1,
            "allow_msg_ttl": True,
        },
        settings={
            "max_bytes": section.max_bytes,
            "discard": "new",  # else a full stream drops documents without a word
            "subject_delete_marker_ttl": nanoseconds(MARKER_SECONDS),
            "num_replicas": replicas if section.replicas is None else section.replicas,
        },
        keys={
            "name": "state.name",
            "subjects": "subjects.state",
            "max_bytes": "state.max_bytes",
            "num_replicas": "stream.replicas" if section.replicas is None else "state.replicas",
        },
        initial={"allow_atomic": True},  # nats-server 2.12 (ADR-50), see `Keyed.put_all`
    )


def presence(section: config.Presence, names: Names, replicas: int) -> Wanted:
    """Return the stream that keeps who is present: in memory, since brokers can say it again."""
    return Wanted(
        name=section.name,
        required={
            "subjects": [f"{names.presence}.>"],
            **REQUIRED,
            "storage": "memory",
            "max_msgs_per_subject": 1,
            "allow_msg_ttl": True,
        },
        settings={
            "max_bytes": section.max_bytes,
            "discard": "new",  # else a full stream drops members without a word
            # Members whose time is over go with a marker, which all brokers hear of.
            "subject_delete_marker_ttl": nanoseconds(GONE_SECONDS),
            "num_replicas": replicas,
        },
        keys={
            "name": "presence.name",
            "subjects": "subjects.presence",
            "max_bytes": "presence.max_bytes",
            "num_replicas": "stream.replicas",
        },
    )


def cursors(section: config.Stream) -> Wanted:
    """Return the stream behind the bucket of cursors."""
    return bucket(
        section.cursor_bucket,
        settings={"max_age": nanoseconds(section.cursor_max_age), "num_replicas": section.replicas},
        keys={"name": "stream.cursor_bucket", "max_age": "stream.cursor_max_age"},
        initial={"allow_atomic": True},  # nats-server 2.12 (ADR-50), see `Values.put_all`
    )


def control(section: config.Stream) -> Wanted:
    """Return the stream behind the control bucket, where a value may have a time to live."""
    return bucket(
        section.control_bucket,
        settings={"num_replicas": section.replicas},
        keys={"name": "stream.control_bucket"},
        allow_msg_ttl=True,
    )


def bucket(
    name: str,
    *,
    settings: Mapping[str, Any],
    keys: Mapping[str, str],
    initial: Mapping[str, Any] | None = None,
    **required: object,
) -> Wanted:
    """Return the stream behind a key-value bucket (ADR-8)."""
    return Wanted(
        name=f"KV_{name}",
        required={"subjects": [f"$KV.{name}.>"], **REQUIRED, **required},
        settings={"max_msgs_per_subject": 1, **settings},
        keys={"num_replicas": "stream.replicas", **keys},
        initial=initial or {},
    )


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
