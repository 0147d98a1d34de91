"""The sections of the configuration, with their defaults.

The annotated types are those of `broker.config.values`, which define unit and range. Durations are seconds
(float), sizes are bytes.
"""

# Without `from __future__ import annotations`: the loader reads these annotations at run time.

from pathlib import Path
from typing import Literal

import attrs

from broker.config.values import (
    AnyBytes,
    AnyCount,
    Bytes,
    Count,
    HttpUrl,
    Limit,
    Listen,
    NatsUrl,
    Network,
    Number,
    Origin,
    OwnToken,
    Rate,
    Ratio,
    Replicas,
    Seconds,
    Span,
    StreamName,
    SubjectToken,
    TenantName,
)

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "console", "json"]


@attrs.frozen(kw_only=True)
class Server:
    """The public port and the admin port."""

    listen: Listen = "127.0.0.1:8080"
    admin_listen: Listen = "127.0.0.1:8081"
    admin_token_file: Path | None = None  # None: generated in the data directory
    data_dir: Path | None = None  # None: the platform's directory for a user's program state
    origins: tuple[Origin, ...] = ()  # exact "scheme://host[:port]"
    query_token: bool = False  # accept ?access_token=
    trusted_proxies: tuple[Network, ...] = ()  # trusted for the client's address
    proxy_protocol: bool = False  # the trusted proxies send the PROXY protocol
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None  # clients may present a certificate signed by it
    tls_client_required: bool = False  # and must do so
    plain: bool = False  # allow other addresses than loopback without TLS
    admin_plain: bool = False  # the same for the admin port, which has no TLS
    backlog: Count = 1024
    reuse_port: bool = (
        False  # several processes on one port; each has an admin port and a data_dir of its own
    )


@attrs.frozen(kw_only=True)
class Nats:
    """Where NATS is. Without `urls` the broker runs its own nats-server."""

    urls: tuple[NatsUrl, ...] = ()
    user: str | None = None
    password_file: Path | None = None
    credentials_file: Path | None = None
    nkey_file: Path | None = None
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_first: bool = False
    jetstream_domain: SubjectToken | None = None
    request_seconds: Seconds = 5.0


@attrs.frozen(kw_only=True)
class Subjects:
    """Subject prefixes."""

    events: SubjectToken = "events"
    live: SubjectToken = "live"
    deadletter: SubjectToken = "deadletter"
    rpc: SubjectToken = "rpc"  # requests to services
    state: SubjectToken = "state"  # documents
    changes: SubjectToken = "changes"  # questions to services that own documents
    presence: SubjectToken = "presence"
    own: OwnToken = "_broker"  # messages among brokers


@attrs.frozen(kw_only=True)
class Stream:
    """The streams for events and for dead letters."""

    name: StreamName = "EVENTS"
    max_age: Seconds = 7 * 86400.0
    max_bytes: Bytes | None = None  # required by `serve`
    max_msgs_per_subject: Limit = -1
    duplicate_window: Seconds = 600.0
    replicas: Replicas = 1
    deadletter_name: StreamName = "DEADLETTER"
    deadletter_max_age: Seconds = 7 * 86400.0
    deadletter_max_bytes: Bytes = 64 * 1024 * 1024
    cursor_bucket: StreamName = "broker_cursors"
    cursor_max_age: Seconds = 30 * 86400.0
    control_bucket: StreamName = "broker_control"
    own_name: StreamName = "BROKER"  # of the canaries
    adopt: bool = False  # take over a stream made by others, and allow changes that delete events


@attrs.frozen(kw_only=True)
class Documents:
    """The channels of a pattern are documents.

    `owner` decides on changes: the broker, by the JSON Schema in the file `schema` if there is one, or a
    service.
    """

    channel: str
    owner: Literal["broker", "service"] = "broker"
    schema: Path | None = None


@attrs.frozen(kw_only=True)
class State:
    """The stream of documents. It is made, and used, only where there are `documents`."""

    enabled: bool = True
    name: StreamName = "STATE"
    max_bytes: Bytes = 256 * 1024 * 1024
    replicas: Replicas | None = None  # None: as stream.replicas
    documents: tuple[Documents, ...] = ()  # of two patterns that match a channel the first counts

    @property
    def used(self) -> bool:
        return self.enabled and bool(self.documents)


@attrs.frozen(kw_only=True)
class Presence:
    """The stream of who is present, in memory."""

    enabled: bool = True
    name: StreamName = "PRESENCE"
    max_bytes: Bytes = 64 * 1024 * 1024


@attrs.frozen(kw_only=True)
class Key:
    """One signing key, or a JWKS with several, from exactly one source; `auth.sources` checks it."""

    name: str
    algorithms: tuple[str, ...] = ()  # required; for a secret the default is HS256
    secret_file: Path | None = None
    secret: str | None = attrs.field(default=None, repr=False)  # meant for the environment; prefer a file
    pem_file: Path | None = None
    jwks_file: Path | None = None
    jwks_url: str | None = None
    tenants: tuple[str, ...] = ()  # names of tenants that it may sign for; "*" for all
    tenant: str | None = None  # instead: the one tenant, for tokens that name none
    monitoring: bool = False  # may sign monitoring tokens
    issuer: str | None = None  # with jwks_url one of the two is required; "*" is any
    audience: str | None = None


@attrs.frozen(kw_only=True)
class Auth:
    """Which tokens are accepted."""

    keys: tuple[Key, ...] = ()
    tenant_claim: str = "tenant"  # a path: "app.tenant"
    type: tuple[str, ...] = ("JWT", "at+jwt")  # allowed `typ`; it may be missing if "JWT" is allowed
    leeway: Span = 60.0
    expiring_seconds: Seconds = 60.0  # before expiry, or half-way: `connection.expiring` is sent


@attrs.frozen(kw_only=True)
class Permissions:
    """The permissions of tokens without the claim `permissions`. `auth.tokens` checks the patterns."""

    subscribe: tuple[str, ...] = (">", "live.>")
    publish: tuple[str, ...] = ()
    request: tuple[str, ...] = ()
    change: tuple[str, ...] = ()
    presence: tuple[str, ...] = (">", "live.>", "users.>", "live.users.>")  # within `subscribe`
    observe: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Allowance:
    """What one holder (a connection, a user, …) may have at a time, and do per second.

    0 is no limit, and so is an unset key; in `limits.tenants` an unset key is that of `limits.tenant`.
    `config.checks` refuses keys without a meaning for a scope.
    """

    connections: AnyCount | None = None
    connects_per_second: Rate | None = None
    subscriptions: AnyCount | None = None
    messages_per_second: Rate | None = None  # from the client, of any type
    bytes_per_second: AnyBytes | None = None  # in these messages
    publishes_per_second: Rate | None = None
    delivered_bytes_per_second: AnyBytes | None = (
        None  # to the client; beyond it is slowed, and loses nothing
    )


@attrs.frozen(kw_only=True)
class TenantAllowance(Allowance):
    """Limits of one tenant instead of `limits.tenant`. A `suspended` tenant has no connections at all.

    Unset, `documents` and `document_bytes` are those of `limits`.
    """

    name: TenantName
    suspended: bool = False
    documents: AnyCount | None = None
    document_bytes: AnyBytes | None = None


SNAPSHOT_BYTES = 16 * 1024 * 1024  # of bodies: beyond this it is a download, not a snapshot


@attrs.frozen(kw_only=True)
class Limits:
    """Limits. The protocol page, "Limits", explains each that is not a table.

    The tables apply to each connection, user, tenant and client address, and to this process, in sum.
    """

    connections_per_user: Count = 10
    connections: Count = 10000
    subscriptions_per_connection: Count = 128
    filters_per_connection: Count = 16
    filters_per_tenant: Count = 256
    paced_channels: Count = 1000
    messages_per_minute: Count = 100
    messages_burst: Count = 50
    requests_per_second: Count = 10
    requests_burst: Count = 200
    calls_per_second: Count = 10
    calls_burst: Count = 50
    requests_in_flight: Count = 16
    changes_per_second: Count = 10
    changes_burst: Count = 50
    change_bytes: Bytes = 32768
    history_per_minute: Count = 30
    history_channels: Count = 16
    history_bytes: Bytes = 262144
    history_reads: Count = 8
    message_bytes: Bytes = 65536
    publish_bytes: Bytes = 10240
    token_bytes: Bytes = 8192
    token_max_seconds: Seconds = 86400.0
    event_bytes: Bytes = 65536
    outbound_bytes: Bytes = 131072
    authentication_seconds: Seconds = 10.0
    head_seconds: Seconds = 5.0
    head_bytes: Bytes = 16384
    body_seconds: Seconds = 10.0
    heartbeat_seconds: Seconds = 25.0
    heartbeat_timeout_seconds: Seconds = 10.0
    stall_seconds: Seconds = 120.0
    snapshot_channels: Count = 10000
    snapshot_memory_bytes: Bytes = 134217728
    last_events: Count = 1000
    replay_events: Count = 100000
    catch_ups_per_connection: Count = 2
    catch_ups: Count = 64
    durables_per_user: Count = 16
    documents_per_connection: Count = 1000
    document_set_bytes: Bytes = 8 * 1024 * 1024
    documents: Count = 100_000  # of a tenant, in the stream
    document_bytes: Bytes = 128 * 1024 * 1024  # of them, with their headers
    presence_entered: Count = 16
    presence_watched: Count = 32
    presence_members: Count = 20000
    presence_linger_seconds: Seconds = 30.0
    connection: Allowance = Allowance()
    user: Allowance = Allowance()
    tenant: Allowance = Allowance()
    address: Allowance = Allowance()
    process: Allowance = Allowance()
    tenants: tuple[TenantAllowance, ...] = ()


@attrs.frozen(kw_only=True)
class Ring:
    """Bounds of the recent events of a tenant in memory."""

    events: Count = 8192
    bytes: Bytes = 8 * 1024 * 1024
    seconds: Seconds = 300.0
    total_bytes: Bytes = 256 * 1024 * 1024


@attrs.frozen(kw_only=True)
class Drain:
    """How the broker drains its connections when it stops."""

    grace_seconds: Seconds = 25.0
    reconnects_per_second: Number = 500.0  # the rate at which clients are asked to reconnect


@attrs.frozen(kw_only=True)
class Audit:
    """The stream of the audit trail, and the ended connections that are remembered."""

    enabled: bool = True
    name: StreamName = "AUDIT"
    prefix: SubjectToken = "audit"
    max_age: Seconds = 30 * 86400.0
    max_bytes: Bytes = 256 * 1024 * 1024
    closes: Count = 1000  # kept in memory


@attrs.frozen(kw_only=True)
class Metrics:
    """What `/metrics` of the admin port shows."""

    tenants: Count = 50  # with series of their own
    share_seconds: Seconds = 60.0  # between counts of each tenant's messages in the stream


@attrs.frozen(kw_only=True)
class Log:
    """What is written to standard error."""

    level: Level = "info"
    format: Format = "auto"
    burst: Count = 20  # lines of one event and tenant (or peer) ...
    period: Seconds = 60.0  # ... within this


@attrs.frozen(kw_only=True)
class Tracing:
    """Spans by OpenTelemetry of events that carry a `traceparent`."""

    enabled: bool = False
    endpoint: HttpUrl = "http://127.0.0.1:4318/v1/traces"  # OTLP over HTTP
    sample_ratio: Ratio = 1.0  # share of clients' publishes that begin a trace
    clients: bool = False  # `event` carries the `traceparent`


@attrs.frozen(kw_only=True)
class Config:
    """All sections. Only `app` and `cli` see the whole."""

    server: Server = Server()
    nats: Nats = Nats()
    subjects: Subjects = Subjects()
    stream: Stream = Stream()
    state: State = State()
    presence: Presence = Presence()
    auth: Auth = Auth()
    permissions: Permissions = Permissions()
    limits: Limits = Limits()
    ring: Ring = Ring()
    drain: Drain = Drain()
    audit: Audit = Audit()
    metrics: Metrics = Metrics()
    log: Log = Log()
    tracing: Tracing = Tracing()
