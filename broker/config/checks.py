"""What no key can say alone: keys that contradict each other, and the files that keys name.

Keys, their files, and the patterns of `permissions` are checked in `broker.auth`, which reads them.
"""

from __future__ import annotations

import stat
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, TypeAlias

import attrs

from broker.config.sections import SNAPSHOT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from broker.config.sections import Config, Limits, Nats, Server, Stream, Tracing

# What a table of limits does not say, since it is said elsewhere or says nothing.
ELSEWHERE = {
    ("connection", "connections"): "says nothing: a connection is one",
    ("connection", "connects_per_second"): "says nothing: a connection connects once",
    ("connection", "subscriptions"): "is the key limits.subscriptions_per_connection",
    ("user", "connections"): "is the key limits.connections_per_user",
    ("process", "connections"): "is the key limits.connections",
}

Fault: TypeAlias = tuple[str, str]  # the key, and the rest of a sentence that begins with it


def faults(config: Config, production: bool) -> Iterator[Fault]:
    """Everything that is wrong between keys; `production` adds what `broker serve` needs."""
    yield from server_faults(config.server)
    yield from nats_faults(config.nats)
    prefixes = attrs.asdict(config.subjects)
    if config.audit.prefix in prefixes.values():
        yield "audit.prefix", f"{config.audit.prefix!r} stands in section subjects; records need their own"
    if config.audit.name in (config.stream.name, config.stream.deadletter_name, config.stream.own_name):
        yield "audit.name", "is another stream of section stream; records need their own"
    for name in prefixes:
        if list(prefixes.values()).count(prefixes[name]) > 1:
            yield f"subjects.{name}", f"{prefixes[name]!r} stands for more than one kind of subject"
    yield from stream_faults(config.stream, embedded=not config.nats.urls)
    yield from limit_faults(config.limits)
    yield from tracing_faults(config.tracing)
    if config.ring.bytes > config.ring.total_bytes:
        yield "ring.bytes", "is more for one tenant than ring.total_bytes for all"
    if production and config.stream.max_bytes is None:
        yield "stream.max_bytes", 'is required by `broker serve`: how much disk may events take ("10GiB")?'
    if production and not config.auth.keys:
        yield "auth.keys", "is required by `broker serve`: without a key no token is believed"


def server_faults(server: Server) -> Iterator[Fault]:
    if server.listen == server.admin_listen and not server.listen.endswith(":0"):
        yield "server.admin_listen", "is the public port; the admin interface needs its own"
    if server.proxy_protocol and not server.trusted_proxies:
        yield "server.trusted_proxies", "is required beside server.proxy_protocol: whose header is believed?"
    yield from pair("server", server, "tls_certificate", "tls_key")
    yield from readable("server.tls_certificate", server.tls_certificate)
    yield from private("server.tls_key", server.tls_key)
    yield from readable("server.tls_client_ca", server.tls_client_ca)
    if server.tls_client_ca is not None and server.tls_certificate is None:
        yield (
            "server.tls_certificate",
            "is required beside server.tls_client_ca: without TLS there are none",
        )
    if server.tls_client_required and server.tls_client_ca is None:
        yield "server.tls_client_ca", "is required beside server.tls_client_required: who signs them?"
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
        yield f"nats.{name}", f"is set beside nats.{ways[0]}; there is one way to log in"
    if not nats.urls:
        for name in (*ways, "tls_ca", "tls_certificate", "jetstream_domain"):
            if getattr(nats, name) is not None:
                yield "nats.urls", f"is required beside nats.{name}: the broker's own nats-server needs none"


def stream_faults(stream: Stream, *, embedded: bool) -> Iterator[Fault]:
    if stream.name == stream.deadletter_name:
        yield "stream.deadletter_name", "is stream.name; dead letters are kept in a stream of their own"
    if stream.own_name in (stream.name, stream.deadletter_name):
        yield "stream.own_name", "is the stream of the events or of dead letters; canaries need their own"
    if stream.control_bucket == stream.cursor_bucket:
        yield "stream.control_bucket", "is stream.cursor_bucket; each is a bucket of its own"
    if stream.duplicate_window > stream.max_age:
        yield "stream.duplicate_window", "is longer than stream.max_age, which NATS refuses"
    if embedded and stream.replicas > 1:
        yield "nats.urls", "is required with stream.replicas above 1: the broker's own nats-server is one"


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
            yield f"limits.tenants.{index}.name", f"{name} stands there already; one entry for each tenant"


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
    """Two keys that stand together or not at all."""
    for present, absent in ((one, other), (other, one)):
        if getattr(table, present) is not None and getattr(table, absent) is None:
            yield f"{section}.{absent}", f"is required beside {section}.{present}"


def readable(key: str, path: Path | None) -> Iterator[Fault]:
    """Yield a file that must be there for us to read."""
    if path is None:
        return
    try:
        path.open("rb").close()
    except OSError as error:
        yield key, f"{path} cannot be read: {error.strerror}"


def private(key: str, path: Path | None) -> Iterator[Fault]:
    """As `readable`, and a secret: nobody but its owner and group may do anything with it."""
    yield from (found := list(readable(key, path)))
    if path is not None and not found and (mode := stat.S_IMODE(path.stat().st_mode)) & stat.S_IRWXO:
        yield key, f"{path} is open to every user of this machine (mode {mode:03o}): `chmod o= {path}`"
