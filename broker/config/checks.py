"""Checks across keys: keys that contradict each other, and the files that keys name.

Keys, their files, and the patterns of `permissions` are checked in `broker.auth`, which reads them.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, TypeAlias

import attrs

from broker.config.files import exposed, unreadable
from broker.config.sections import SNAPSHOT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from broker.config.sections import Config, Limits, Nats, Server, Stream, Tracing

# Limits that a table does not take, since another key has them or they make no sense there.
ELSEWHERE = {
    ("connection", "connections"): "has no meaning here: a connection is one",
    ("connection", "connects_per_second"): "has no meaning here: a connection connects once",
    ("connection", "subscriptions"): "is set by limits.subscriptions_per_connection",
    ("user", "connections"): "is set by limits.connections_per_user",
    ("process", "connections"): "is set by limits.connections",
}

Fault: TypeAlias = tuple[str, str]  # the key, and the rest of a sentence that begins with it


def faults(config: Config, production: bool) -> Iterator[Fault]:
    """Yield every fault across keys; `production` adds what `broker serve` requires."""
    yield from server_faults(config.server)
    yield from nats_faults(config.nats)
    prefixes = attrs.asdict(config.subjects)
    if config.audit.prefix in prefixes.values():
        yield (
            "audit.prefix",
            f"{config.audit.prefix!r} is used in section subjects; audit records need their own",
        )
    if config.audit.name in (config.stream.name, config.stream.deadletter_name, config.stream.own_name):
        yield "audit.name", "is another stream in section stream; audit records need their own"
    if config.state.name in (
        *(config.stream.name, config.stream.deadletter_name, config.stream.own_name, config.audit.name),
    ):
        yield "state.name", "is another stream; documents need their own"
    for name in prefixes:
        if list(prefixes.values()).count(prefixes[name]) > 1:
            yield f"subjects.{name}", f"{prefixes[name]!r} is used for more than one kind of subject"
    yield from stream_faults(config.stream, embedded=not config.nats.urls)
    if not config.nats.urls and (config.state.replicas or 1) > 1:
        yield (
            "nats.urls",
            "is required with state.replicas above 1: the embedded nats-server is a single server",
        )
    for index, each in enumerate(config.state.documents):
        yield from readable(f"state.documents.{index}.schema", each.schema)
        if each.schema is not None and each.owner == "service":
            yield (
                f"state.documents.{index}.schema",
                "is for documents of the broker: a service judges its own",
            )
    yield from limit_faults(config.limits)
    yield from tracing_faults(config.tracing)
    if config.ring.bytes > config.ring.total_bytes:
        yield "ring.bytes", "is more for one tenant than ring.total_bytes for all"
    if production and config.stream.max_bytes is None:
        yield "stream.max_bytes", 'is required by `broker serve`: the disk space for events, such as "10GiB"'
    if production and not config.auth.keys:
        yield "auth.keys", "is required by `broker serve`: without a key every token is refused"


def server_faults(server: Server) -> Iterator[Fault]:
    if server.listen == server.admin_listen and not server.listen.endswith(":0"):
        yield "server.admin_listen", "is the public port; the admin interface needs its own"
    if server.proxy_protocol and not server.trusted_proxies:
        yield (
            "server.trusted_proxies",
            "is required beside server.proxy_protocol: the addresses whose header is trusted",
        )
    yield from pair("server", server, "tls_certificate", "tls_key")
    yield from readable("server.tls_certificate", server.tls_certificate)
    yield from private("server.tls_key", server.tls_key)
    yield from readable("server.tls_client_ca", server.tls_client_ca)
    if server.tls_client_ca is not None and server.tls_certificate is None:
        yield (
            "server.tls_certificate",
            "is required beside server.tls_client_ca: client certificates need TLS",
        )
    if server.tls_client_required and server.tls_client_ca is None:
        yield (
            "server.tls_client_ca",
            "is required beside server.tls_client_required: the authority of client certificates",
        )
    yield from private("server.admin_token_file", server.admin_token_file)


def nats_faults(nats: Nats) -> Iterator[Fault]:
    yield from pair("nats", nats, "user", "password_file")
    yield from pair("nats", nats, "tls_certificate", "tls_key")
    for name in ("tls_ca", "tls_certificate"):
        yield from readable(f"nats.{name}", getattr(nats, name))
    for name in ("password_file", "credentials_file", "nkey_file", "tls_key"):
        yield from private(f"nats.{name}", getattr(nats, name))
    ways = [name for name in ("user", "credentials_file", "nkey_file") if getattr(nats, name) is not None]
    for name in ways[1:]:
        yield f"nats.{name}", f"is set beside nats.{ways[0]}; use one way to log in"
    if not nats.urls:
        for name in (*ways, "tls_ca", "tls_certificate", "jetstream_domain"):
            if getattr(nats, name) is not None:
                yield "nats.urls", f"is required beside nats.{name}: the embedded nats-server does not use it"


def stream_faults(stream: Stream, *, embedded: bool) -> Iterator[Fault]:
    if stream.name == stream.deadletter_name:
        yield "stream.deadletter_name", "is stream.name; dead letters need a stream of their own"
    if stream.own_name in (stream.name, stream.deadletter_name):
        yield "stream.own_name", "is the stream of events or of dead letters; canaries need their own"
    if stream.control_bucket == stream.cursor_bucket:
        yield "stream.control_bucket", "is stream.cursor_bucket; each needs a bucket of its own"
    if stream.duplicate_window > stream.max_age:
        yield "stream.duplicate_window", "is longer than stream.max_age, which NATS refuses"
    if embedded and stream.replicas > 1:
        yield (
            "nats.urls",
            "is required with stream.replicas above 1: the embedded nats-server is a single server",
        )


def limit_faults(limits: Limits) -> Iterator[Fault]:
    for small, large in (
        ("publish_bytes", "message_bytes"),
        ("publish_bytes", "event_bytes"),
        ("token_bytes", "head_bytes"),
        ("connections_per_user", "connections"),
    ):
        if getattr(limits, small) > getattr(limits, large):
            yield f"limits.{small}", f"is above limits.{large}, so it could never be reached"
    if limits.snapshot_memory_bytes < 2 * SNAPSHOT_BYTES:
        yield "limits.snapshot_memory_bytes", "is below 32 MiB: a tenant has half, and a snapshot may take 16"
    for (scope, key), why in ELSEWHERE.items():
        if getattr(getattr(limits, scope), key) is not None:
            yield f"limits.{scope}.{key}", why
    names = [each.name for each in limits.tenants]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield f"limits.tenants.{index}.name", f"{name} has an entry already; use one for each tenant"


def tracing_faults(tracing: Tracing) -> Iterator[Fault]:
    if not tracing.enabled:
        return
    try:
        for name in ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"):
            distribution(name)
    except PackageNotFoundError:
        extra = "pip install 'nats-websocket-broker[tracing]'"
        yield "tracing.enabled", f"needs OpenTelemetry, which is not installed: `{extra}`"


def pair(section: str, table: object, one: str, other: str) -> Iterator[Fault]:
    """Yield a fault when only one of two keys is set that belong together."""
    for present, absent in ((one, other), (other, one)):
        if getattr(table, present) is not None and getattr(table, absent) is None:
            yield f"{section}.{absent}", f"is required beside {section}.{present}"


def readable(key: str, path: Path | None) -> Iterator[Fault]:
    """Yield a fault when the file under a key cannot be read."""
    if path is None:
        return
    try:
        path.open("rb").close()
    except OSError as error:
        yield key, unreadable(path, error)


def private(key: str, path: Path | None) -> Iterator[Fault]:
    """Yield as `readable`, and a fault when others than its owner and group may access the secret."""
    yield from (found := list(readable(key, path)))
    if path is not None and not found and (fault := exposed(path, path.stat().st_mode)):
        yield key, fault
