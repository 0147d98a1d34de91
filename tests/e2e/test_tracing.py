"""Tracing: the spans of an event, and what clients and services get to go on with."""

from __future__ import annotations

import json
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from broker import config, tracing
from tests.e2e.test_calls import call, headers_of, service
from tests.e2e.test_reload import Served, prepared
from tests.support import command
from tests.support.broker import Broker, configure, run_broker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

    from tests.support.nats import NatsServer
    from tests.support.rawnats import RawNats

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
STATES = ["no pair", "a=\udcff", "x" * 4096, ",".join(f"k{number}=v" for number in range(600)), "=,,==;"]
MALFORMED = [
    f"00-{TRACE}-{SPAN}",
    f"00-{TRACE}-{SPAN}-01-x",
    f"ff-{TRACE}-{SPAN}-01",
    f"00-{'0' * 32}-{SPAN}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    SAMPLED.upper(),
    "x" * 55,
    "",
]


def header(name: str, value: str, more: str = "") -> bytes:
    return f"NATS/1.0\r\n{name}: {value}\r\n{more}\r\n".encode()


@attrs.define(eq=False)
class Traced:
    """A broker that traces, and its spans: all of them once it has ended."""

    broker: Broker
    exporter: InMemorySpanExporter

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    made = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "make_exporter", lambda _: made)
    return made


@asynccontextmanager
async def traced(
    directory: Path, nats: NatsServer, exporter: InMemorySpanExporter, **options: Any
) -> AsyncIterator[Traced]:
    options = {"enabled": True, "clients": True} | options
    settings = configure(directory / "broker", nats.url, tracing=options)
    async with run_broker(directory / "broker", settings) as broker:
        yield Traced(broker, exporter)


def ids(span: ReadableSpan) -> tuple[str, str]:
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def parent(span: ReadableSpan) -> str | None:
    return None if span.parent is None else f"{span.parent.span_id:016x}"


def written(span: ReadableSpan) -> str:
    return "00-{}-{}-{:02x}".format(*ids(span), span.context.trace_flags)


async def test_the_trace_of_a_service(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, exporter: InMemorySpanExporter
) -> None:
    """Its event is received and fanned out under its span, with what it is; clients get the last of them."""
    async with (
        traced(tmp_path, nats, exporter) as run,
        run.broker.client() as client,
        run.broker.client(user="bob") as other,
    ):
        await client.subscribe(["orders.>", "orders.7"])
        await other.subscribe("orders.*")
        sent = header("traceparent", SAMPLED, "tracestate: vendor=1\r\n")
        await publisher.store("events.acme.orders.7", b'{"a":1}', header=sent)
        await publisher.store("events.acme.orders.7", b"2")
        event, plain = await client.events(2)
        assert await other.until("event") == event
        assert plain.keys() == {"channel", "position", "event"}
    (received,), (fanned,) = run.spans("receive"), run.spans("fan-out")
    assert ids(received)[0] == ids(fanned)[0] == TRACE
    assert (parent(received), parent(fanned)) == (SPAN, ids(received)[1])
    assert event == {
        "channel": "orders.7",
        "position": event["position"],
        "event": {"a": 1},
        "traceparent": written(fanned),
    }
    assert fanned.context.trace_state.get("vendor") == "1"
    assert received.attributes == {
        "broker.subject": "events.acme.orders.7",
        "broker.position": event["position"],
    }
    assert fanned.attributes == {
        "broker.tenant": "acme",
        "broker.channel": "orders.7",
        "broker.position": event["position"],
        "broker.audience": 2,
    }
    assert (received.end_time or 0) <= (fanned.start_time or 0)
    assert received.resource.attributes["service.name"] == "broker"


async def test_a_broadcast(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, exporter: InMemorySpanExporter
) -> None:
    """It is received once and fanned out in each tenant; a live one has no position."""
    async with (
        traced(tmp_path, nats, exporter) as run,
        run.broker.client("acme") as acme,
        run.broker.client("globex") as globex,
    ):
        for client in (acme, globex):
            await client.subscribe("live.a")
        await publisher.publish("live._all.a", b"1", header=header("Traceparent", SAMPLED))
        got = {(await client.until("event"))["traceparent"] for client in (acme, globex)}
    (received,) = run.spans("receive")
    fanned = run.spans("fan-out")
    assert [parent(span) for span in fanned] == [ids(received)[1]] * 2
    assert {span.attributes["broker.tenant"] for span in fanned if span.attributes} == {"acme", "globex"}
    assert not any("broker.position" in (span.attributes or {}) for span in (received, *fanned))
    assert {written(span) for span in fanned} == got


@pytest.mark.parametrize("channel", ["a", "live.a"])
@pytest.mark.parametrize("given", [None, SAMPLED, UNSAMPLED, *MALFORMED])
async def test_the_publish_of_a_client(
    tmp_path: Path,
    nats: NatsServer,
    publisher: RawNats,
    exporter: InMemorySpanExporter,
    channel: str,
    given: str | None,
) -> None:
    """It continues the client's trace, or begins one; the headers in NATS have its span."""
    subject = "live.acme.a" if channel == "live.a" else "events.acme.a"
    seen = await publisher.subscribe(subject)
    async with traced(tmp_path, nats, exporter) as run:
        async with run.broker.client() as client:
            await client.subscribe(channel)
            wish = {"channel": channel, "event": 1} | ({"traceparent": given} if given is not None else {})
            await client.send("publish", wish)
            event = await client.until("event")
            assert event["publisher"] == {"user": "alice"}
        message = await seen.receive()
    spans = [run.spans(name) for name in ("publish", "receive", "fan-out")]
    if given == UNSAMPLED:
        assert spans == [[], [], []]
        assert event["traceparent"].startswith(f"00-{TRACE}-")
        assert event["traceparent"].endswith("-00")
        return
    ((published,), (received,), (fanned,)) = spans
    assert f"traceparent: {written(published)}\r\n".encode() in message.header
    assert parent(published) == (SPAN if given == SAMPLED else None)
    assert (ids(published)[0] == TRACE) is (given == SAMPLED)
    assert published.attributes == {"broker.tenant": "acme", "broker.channel": channel}
    assert parent(received) == ids(published)[1]
    assert parent(fanned) == ids(received)[1]
    assert event["traceparent"] == written(fanned)


async def test_a_refused_publish(tmp_path: Path, nats: NatsServer, exporter: InMemorySpanExporter) -> None:
    """What NATS does not take is a span with an error."""
    nats.options["max_payload"] = 1024
    await nats.restart()
    async with traced(tmp_path, nats, exporter) as run, run.broker.client() as client:
        await client.send("publish", {"channel": "a", "event": "x" * 5000})
        assert (await client.until("error"))["code"] == "too_large"
    (published,) = run.spans("publish")
    assert not published.status.is_ok


@pytest.mark.parametrize("sent", [header("traceparent", each) for each in MALFORMED])
async def test_malformed(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, exporter: InMemorySpanExporter, sent: bytes
) -> None:
    """A malformed traceparent is as good as none: no span, no field, and the event arrives."""
    async with traced(tmp_path, nats, exporter) as run, run.broker.client() as client:
        await client.subscribe("a")
        await publisher.store("events.acme.a", b"1", header=sent)
        assert (await client.until("event")).keys() == {"channel", "position", "event"}
    assert not exporter.get_finished_spans()


@pytest.mark.parametrize("state", STATES)
def test_a_malformed_state(
    state: str, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """A tracestate that is none is left out; the trace goes on, and no line is logged for it."""
    traced = tracing.Tracing(config.Tracing(enabled=True), exporter)
    headers = {"traceparent": SAMPLED, "tracestate": state}
    [(_, _, _, fields)] = traced.received([(1, "events.acme.a", b"1", headers)], "inc")
    traced.close()
    assert fields
    assert fields.keys() == {"traceparent"}
    assert fields["traceparent"].split("-")[1] == TRACE
    assert not caplog.records


async def test_not_sampled(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, exporter: InMemorySpanExporter
) -> None:
    """What its publisher does not sample is not recorded; the client gets the trace as it came."""
    async with traced(tmp_path, nats, exporter) as run, run.broker.client() as client:
        await client.subscribe("a")
        await publisher.store("events.acme.a", b"1", header=header("traceparent", UNSAMPLED))
        assert (await client.until("event"))["traceparent"] == UNSAMPLED
    assert not exporter.get_finished_spans()


async def test_the_ratio(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, exporter: InMemorySpanExporter
) -> None:
    """It is for traces that begin here; one that is sampled already stays so. Without `clients` no field."""
    off = {"sample_ratio": 0.0, "clients": False}
    async with traced(tmp_path, nats, exporter, **off) as run, run.broker.client() as client:
        await client.subscribe("a")
        await client.send("publish", {"channel": "a", "event": 1})
        await publisher.store("events.acme.a", b"2", header=header("traceparent", SAMPLED))
        for event in await client.events(2):
            assert "traceparent" not in event
    assert [span.name for span in exporter.get_finished_spans()] == ["receive", "fan-out"]


async def test_what_is_read_again(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, exporter: InMemorySpanExporter
) -> None:
    """An event from the history has the trace too, and makes no further span."""
    async with traced(tmp_path, nats, exporter) as run, run.broker.client() as client:
        await client.subscribe("b")
        for channel in "ab":
            await publisher.store(f"events.acme.{channel}", b"1", header=header("traceparent", SAMPLED))
        await client.until("event")
        for start in ({"last": 5}, {"snapshot": True}):
            await client.subscribe("a", **start)
            event = await client.until("event")
            assert event["channel"] == "a"
            assert event["traceparent"].startswith(f"00-{TRACE}-")
    audiences = {span.attributes["broker.audience"] for span in run.spans("fan-out") if span.attributes}
    assert audiences == {0, 1}
    assert len(run.spans("fan-out")) == 2


@attrs.define(eq=False)
class Process:
    """A real `broker serve`, and what it has written to its standard error so far."""

    served: Served
    running: command.Running
    written: list[str] = attrs.field(factory=list)

    async def until(self, text: str) -> str:
        while text not in (line := await self.running.line("stderr")):
            self.written.append(line)
        return line

    async def end(self) -> int:
        self.running.process.send_signal(signal.SIGTERM)
        with trio.fail_after(command.PATIENCE_SECONDS):
            code = await self.running.process.wait()
        assert isinstance(self.running.process.stderr, trio.abc.ReceiveStream)
        rest = self.running.buffers["stderr"]
        async for data in self.running.process.stderr:
            rest += data
        self.written += rest.decode().splitlines()
        return code


@asynccontextmanager
async def process(
    directory: Path, nats: NatsServer, *, environment: dict[str, str] | None = None, **settings: Any
) -> AsyncIterator[Process]:
    served = prepared(directory, nats, permissions={"publish": [">"]}, tracing=settings)
    async with command.start("serve", "--config", served.file, **(environment or {})) as running:
        run = Process(served, running)
        served.ws = json.loads(await run.until('"ready"'))["ws"]
        yield run


async def test_nothing_while_it_is_off(tmp_path: Path, nats: NatsServer, publisher: RawNats) -> None:
    """A real broker that does not trace imports nothing for it; headers go through, events are as ever."""
    seen = await publisher.subscribe("events.acme.a")
    shown = {"PYTHONPROFILEIMPORTTIME": "1"}
    async with process(tmp_path, nats, environment=shown) as run:
        async with run.served.client(run.served.token()) as client:
            await client.subscribe("a")
            await publisher.store("events.acme.a", b"1", header=header("traceparent", SAMPLED))
            await client.send("publish", {"channel": "a", "event": 2, "traceparent": SAMPLED})
            for event in await client.events(2):
                assert "traceparent" not in event
                assert f"traceparent: {SAMPLED}\r\n".encode() in (await seen.receive()).header
        assert await run.end() == 0
    modules = [line.rpartition("|")[2].strip() for line in run.written if line.startswith("import time:")]
    assert "broker.wire.traces" in modules
    assert not [each for each in modules if each.startswith(("opentelemetry", "broker.tracing", "requests"))]


async def test_a_request_to_a_service(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, exporter: InMemorySpanExporter
) -> None:
    """The service continues the client's trace; its refusal is an error, whose words stay between the two."""
    refusal = (b"", header("Nats-Service-Error", "alice owes 7"))
    answers = iter([(b"1",), refusal, (b"2",)])
    async with (
        traced(tmp_path, nats, exporter) as run,
        service(publisher, "rpc.acme.a", lambda _: next(answers)) as asked,
        run.broker.client(request=[">"]) as client,
    ):
        assert await call(client, "a", traceparent=SAMPLED) == {"data": 1}
        assert (await call(client, "a", traceparent=SAMPLED))["message"] == "alice owes 7"
        await call(client, "a", traceparent=UNSAMPLED)
        assert (await call(client, "nobody", traceparent=SAMPLED))["code"] == "unavailable"
    spans = run.spans("request")
    parents = [headers_of(each)["traceparent"] for each in asked]
    assert [written(span) for span in spans[:2]] == parents[:2]
    assert parents[2].endswith("-00")
    for span in spans:
        assert (ids(span)[0], parent(span), span.kind) == (TRACE, SPAN, SpanKind.CLIENT)
    assert spans[0].attributes == {"broker.tenant": "acme", "broker.method": "a"}
    statuses = [(span.status.is_ok, span.status.description) for span in spans]
    assert statuses == [(True, None), (False, "rejected"), (False, "unavailable")]
    assert not any(span.events for span in spans)


@attrs.define(eq=False)
class Collector:
    """As much of a collector as speaks OTLP over HTTP; with `silent` it answers nothing."""

    silent: bool = False
    names: list[str] = attrs.field(factory=list)
    port: int = 0

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self.serve, [listener])

    async def serve(self, stream: trio.SocketStream) -> None:
        data = b""
        async for more in stream:
            data += more
            head, end, body = data.partition(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            if end and not self.silent and len(body) >= int(fields[b"content-length"]):
                self.take(body)
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                data = b""

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.names += [span.name for span in scope.spans]


@pytest.mark.parametrize("silent", [False, True])
async def test_a_collector(
    tmp_path: Path, nats: NatsServer, publisher: RawNats, nursery: trio.Nursery, silent: bool
) -> None:
    """At SIGTERM a real broker sends the last spans, and waits no longer than it may for one that hangs.

    A subject that is no text costs none of the spans beside it.
    """
    collector = Collector(silent=silent)
    await nursery.start(collector.run)
    endpoint = f"http://127.0.0.1:{collector.port}/v1/traces"
    async with process(tmp_path, nats, enabled=True, endpoint=endpoint) as run:
        async with run.served.client(run.served.token()) as client:
            await client.subscribe("a")
            for subject in (b"events.acme.\xff", b"events.acme.a"):
                await publisher.store(subject, b"1", header=header("traceparent", SAMPLED))
            await client.send("publish", {"channel": "a", "event": 2})
            assert [event["event"] for event in await client.events(2)] == [1, 2]
        assert await run.end() == 0
    lost = any('"spans_lost"' in line for line in run.written)
    assert lost is silent
    expected = [] if silent else ["fan-out"] * 2 + ["publish"] + ["receive"] * 3
    assert sorted(collector.names) == expected
    assert not [line for line in run.written if "Traceback" in line]


async def test_the_extra_is_missing(tmp_path: Path, nats: NatsServer) -> None:
    """Enabled without OpenTelemetry is a fault that says what to install; while it is off nobody asks."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import importlib.metadata as m\n"
        "real = m.distribution\n"
        "def distribution(name):\n"
        "    if name.startswith('opentelemetry'): raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.distribution = distribution\n"
    )
    for enabled in (True, False):
        served = prepared(tmp_path, nats, tracing={"enabled": enabled})
        result = await command.broker("check-config", served.file, PYTHONPATH=str(site))
        assert (result.code == 1) is enabled
        assert ("pip install 'nats-websocket-broker[tracing]'" in result.err) is enabled
        assert ("tracing.enabled" in result.err) is enabled
