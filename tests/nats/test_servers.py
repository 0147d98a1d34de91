"""Addresses of NATS servers, what is shown to them, and which one is tried next."""

from __future__ import annotations

import base64
import secrets
from itertools import islice
from typing import TYPE_CHECKING

import nkeys
import pytest
import trustme

from broker import config
from broker.nats.login import Server, credentials, tls_context
from broker.nats.protocol import Info
from broker.nats.servers import Servers

if TYPE_CHECKING:
    from pathlib import Path

INFO = Info(version=(2, 12), max_payload=1, nonce="the nonce")


@pytest.mark.parametrize(
    ("url", "host", "port", "shown"),
    [
        ("nats://us%40er:p%3Aw@nats.example.org:4333", "nats.example.org", 4333, "nats.example.org:4333"),
        ("nats.example.org", "nats.example.org", 4222, "nats.example.org:4222"),
        ("127.0.0.1:1", "127.0.0.1", 1, "127.0.0.1:1"),
        ("tls://[fd00::1]:1", "fd00::1", 1, "[fd00::1]:1"),
    ],
)
def test_an_address(url: str, host: str, port: int, shown: str) -> None:
    """Messages name the server alone."""
    server = Server.parse(url)
    assert (server.host, server.port, str(server)) == (host, port, shown)
    assert server.tls == url.startswith("tls:")
    assert "p:w" not in repr(server)


def test_an_address_without_a_host() -> None:
    with pytest.raises(ValueError, match="names no host"):
        Server.parse("nats://user:secret@:4222")


def test_credentials_in_an_address_are_decoded() -> None:
    """`user:password@` may hold what a URL must encode; a user alone is a token."""
    server = Server.parse("nats://us%40er:p%3Aw@h")
    assert credentials(server, config.Nats(), INFO) == {"user": "us@er", "pass": "p:w"}
    token = Server.parse("nats://sec%2Fret@h")
    assert credentials(token, config.Nats(), INFO) == {"auth_token": "sec/ret"}
    assert credentials(Server.parse("h"), config.Nats(), INFO) == {}


def test_the_configuration_s_user_comes_first(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(" secret \n")
    section = config.Nats(user="svc", password_file=tmp_path / "password")
    assert credentials(Server.parse("u:p@h"), section, INFO) == {"user": "svc", "pass": "secret"}


def seed() -> bytes:
    return bytes(nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER))


def verify(seed: bytes, signature: str) -> None:
    """Raises unless the signature is the nonce's."""
    pair = nkeys.from_seed(bytearray(seed))
    assert pair.verify(b"the nonce", base64.urlsafe_b64decode(signature + "=="))


@pytest.mark.parametrize(
    "text", ["{}", "{}\n", "# the broker's\n{}\n", "-----BEGIN USER NKEY SEED-----\n{}\n------END------\n"]
)
def test_an_nkey_is_shown_and_signs_the_nonce(tmp_path: Path, text: str) -> None:
    key = seed()
    (tmp_path / "nk").write_text(text.format(key.decode()))
    found = credentials(Server.parse("h"), config.Nats(nkey_file=tmp_path / "nk"), INFO)
    assert found.keys() == {"nkey", "sig"}
    assert found["nkey"] == nkeys.from_seed(bytearray(key)).public_key.decode()
    verify(key, found["sig"])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_credentials_of_a_file(tmp_path: Path, end: str) -> None:
    """As `nsc` writes it: the JWT, then the seed."""
    key = seed()
    lines = [
        "-----BEGIN NATS USER JWT-----",
        "eyJ0eXAi.eyJq_dGk-.sig",
        "------END NATS USER JWT------",
        "",
        "************************* IMPORTANT *************************",
        "NKEY Seed printed below can be used to sign and prove identity.",
        "",
        "-----BEGIN USER NKEY SEED-----",
        key.decode(),
        "------END USER NKEY SEED------",
        "",
    ]
    (tmp_path / "broker.creds").write_bytes(end.join(lines).encode())
    found = credentials(Server.parse("h"), config.Nats(credentials_file=tmp_path / "broker.creds"), INFO)
    assert found.keys() == {"jwt", "sig"}
    assert found["jwt"] == "eyJ0eXAi.eyJq_dGk-.sig"
    verify(key, found["sig"])


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    """The message names the file and what is missing, and nothing of what it holds."""
    (tmp_path / "file").write_text("password123")
    with pytest.raises(ValueError, match=r"file holds no JWT and seed"):
        credentials(Server.parse("h"), config.Nats(credentials_file=tmp_path / "file"), INFO)
    with pytest.raises(ValueError, match=r"file holds no seed"):
        credentials(Server.parse("h"), config.Nats(nkey_file=tmp_path / "file"), INFO)
    (tmp_path / "file").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"file is not UTF-8"):
        credentials(Server.parse("h"), config.Nats(password_file=tmp_path / "file"), INFO)
    (tmp_path / "file").write_text("---JWT---\na.b.c\n---END---\n---SEED---\nnone\n---END---\n")
    with pytest.raises(ValueError, match="cannot be used: ErrInvalidSeed"):
        credentials(Server.parse("h"), config.Nats(credentials_file=tmp_path / "file"), INFO)


def test_the_authority_and_our_certificate(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca")
    authority.issue_cert("a@example.org").private_key_and_cert_chain_pem.write_to_path(tmp_path / "own")
    section = config.Nats(tls_ca=tmp_path / "ca", tls_certificate=tmp_path / "own")
    assert len(tls_context(section).get_ca_certs()) == 1
    gone = tmp_path / "gone"
    for section in config.Nats(tls_ca=gone), config.Nats(tls_certificate=gone):
        with pytest.raises(ValueError, match=r"tls_c.* .*gone.*: No such file"):
            tls_context(section)


def hosts(servers: Servers, count: int) -> list[str]:
    return [each.host for each in islice(servers.rounds(), count)]


def test_each_round_begins_with_another_server() -> None:
    """A server that has just been lost is tried last."""
    servers = Servers.parse(["a", "b", "c"])
    assert sorted(hosts(servers, 3)) == ["a", "b", "c"]
    last = [servers.configured[0].host]
    for _ in range(6):
        (lost,) = hosts(servers, 1)
        assert lost != last[-1]
        last.append(lost)
    assert set(last) == {"a", "b", "c"}
    found = hosts(servers, 7)
    assert found[:3] == found[3:6]


def test_what_the_cluster_names_comes_after_the_configuration() -> None:
    """As of the speaker are its credentials, and its name where only an IP address is given."""
    servers = Servers.parse(["tls://u:p@nats.example.org"])
    (speaker,) = servers.configured
    servers.name(["10.0.0.1:4222", "other.example.org:5", "nats.example.org:4222", "http://x:1"], speaker)
    first, *rest = islice(servers.rounds(), 3)
    assert first == speaker
    known = {each.host: each for each in rest}
    assert known.keys() == {"10.0.0.1", "other.example.org"}
    assert known["10.0.0.1"].tls_name == "nats.example.org"
    assert known["other.example.org"].tls_name == "other.example.org"
    assert all(each.tls and each.password == "p" for each in rest)
    servers.name([], speaker)
    assert hosts(servers, 2) == ["nats.example.org"] * 2


@pytest.mark.parametrize("odd", ["", ":4222", "a:b", "a:99999", "[::1", "::1:4222", "\u2100:1"])
def test_an_address_that_cannot_be_read_is_left_out(odd: str) -> None:
    """Whoever has written it into the server's configuration: it costs us no connection."""
    servers = Servers.parse(["a"])
    servers.name([odd, "b:1"], servers.configured[0])
    assert hosts(servers, 3) == ["a", "b", "a"]


def test_a_server_that_leaves_is_tried_last() -> None:
    """Until it is there again; and it is not left where there is no other one."""
    servers = Servers.parse(["a"])
    (only,) = servers.configured
    assert not servers.leave(only)
    servers.name(["b", "c"], only)
    assert servers.leave(only)
    for _ in range(2):
        assert hosts(servers, 3)[2] == "a"
    servers.name(["b", "c"], only)
    assert hosts(servers, 3)[0] == "a"
