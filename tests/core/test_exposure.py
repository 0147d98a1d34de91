"""Which ports other machines may reach."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from broker.config import Server, exposure


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.5", False),
        ("fd00::1", False),
        ("fe80::1%eth0", False),
        ("::ffff:10.0.0.5", False),
    ],
)
def test_loopback(address: str, local: bool) -> None:
    """Loopback is 127.0.0.0/8 and ::1, however they are written; a private network is other machines too."""
    assert exposure.is_loopback(address) == local
    for key in (exposure.PUBLIC, exposure.ADMIN):
        assert (exposure.fault(Server(), key, address) is None) == local


def test_ways_out() -> None:
    """TLS or `plain` open the public port, `admin_plain` the other one; each way is told."""
    everywhere = Server(listen="0.0.0.0:8080", admin_listen="[::]:8081")
    faults = dict(exposure.faults(everywhere))
    assert faults.keys() == {"server.listen", "server.admin_listen"}
    assert "tls_certificate" in faults["server.listen"]
    assert "server.plain = true" in faults["server.listen"]
    assert "loopback" in faults["server.admin_listen"]
    assert "server.admin_plain = true" in faults["server.admin_listen"]
    with_tls = attrs.evolve(everywhere, tls_certificate=Path("chain.pem"))
    for opened in (attrs.evolve(everywhere, plain=True), with_tls):
        assert [key for key, _ in exposure.faults(opened)] == ["server.admin_listen"]
    opened = attrs.evolve(everywhere, admin_plain=True)
    assert [key for key, _ in exposure.faults(opened)] == ["server.listen"]


def test_names_are_left_to_who_opens_the_port() -> None:
    """Only what they resolve to says where they lead."""
    assert list(exposure.faults(Server(listen="broker.example:80", admin_listen="localhost:81"))) == []
