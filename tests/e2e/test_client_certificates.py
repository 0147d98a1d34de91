"""Client certificates: their verified name stands beside the connection, for operators."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import trio
import trustme

from tests.support.admin import Admin
from tests.support.broker import configure, run_broker
from tests.support.raw import hear
from tests.web.harness import Client, head

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nats import NatsServer


async def test_the_name_is_shown(tmp_path: Path, nats: NatsServer) -> None:
    """The admin API and the audit trail say whose certificate a connection has; some have none."""
    authority, devices = trustme.CA(), trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    chain, key, ca = (tmp_path / name for name in ("chain.pem", "key.pem", "devices.pem"))
    issued.cert_chain_pems[0].write_to_path(chain)
    key.touch(mode=0o600)
    issued.private_key_pem.write_to_path(key)
    devices.cert_pem.write_to_path(ca)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    server = {"tls_certificate": chain, "tls_key": key, "tls_client_ca": ca}
    settings = configure(tmp_path / "broker", nats.url, server=server)
    async with run_broker(tmp_path / "broker", settings) as broker:
        admin = await Admin.of(broker.running.admin, tmp_path / "broker")
        port = int(broker.running.http.rpartition(":")[2])
        names = []
        for _ in range(2):
            async with await trio.open_ssl_over_tcp_stream(
                "127.0.0.1", port, ssl_context=context, https_compatible=True
            ) as stream:
                client = Client(stream)
                await client.upgrade(head(authorization=f"Bearer {broker.token()}"))
                while (await hear(client))["type"] != "connection.authenticated":
                    pass
                [listed] = (await admin.ask("GET", "/connections"))["connections"]
                names.append((await admin.ask("GET", f"/connections/{listed['id']}"))["certificate"])
            while (await admin.ask("GET", "/connections"))["connections"]:
                await trio.sleep(0.01)
            devices.issue_cert("sensor-7.example", common_name="sensor-7").configure_cert(context)
        assert names[0] is None
        assert names[1].startswith("CN=sensor-7,")
        with trio.fail_after(30):
            while len(records := (await admin.ask("GET", "/audit?kind=authenticated"))["records"]) < 2:
                await trio.sleep(0.05)
        assert sorted(record.get("certificate", "") for record in records) == ["", names[1]]
