"""What a client shows to a NATS server: user and password, token, nkey or credentials; and TLS.

Sources: https://docs.nats.io/reference/reference-protocols/nats-protocol (CONNECT), ADR-14 (JWT and nonce).
"""

from __future__ import annotations

import base64
import re
import ssl
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import attrs
import nkeys

if TYPE_CHECKING:
    from broker import config
    from broker.nats.protocol import Info

# A line of dashes with a title, what it stands for, and a line of dashes: JWT and seed in a credentials file.
PART = re.compile(rb"-{3,}[^\n]*-{3,}\s*\n\s*([\w.=-]+)\s*\n\s*-{3,}")
SEED = re.compile(rb"^\s*(SU[A-Z2-7]{56})\s*$", re.MULTILINE)
DEFAULT_PORT = 4222


@attrs.frozen(kw_only=True)
class Server:
    """Where a NATS server is. `tls_name` is the name that its certificate must have."""

    host: str
    port: int = DEFAULT_PORT
    tls: bool = False
    tls_name: str
    user: str | None = None
    password: str | None = attrs.field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> Server:
        """Read `nats://[user:password@]host[:port]` or `tls://…`; a user alone is a token.

        Raises `ValueError`.
        """
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        if not parts.hostname:
            raise ValueError(f"{parts.netloc.rpartition('@')[2]!r} names no host")
        return cls(
            host=parts.hostname,
            port=parts.port or DEFAULT_PORT,
            tls=parts.scheme == "tls",
            tls_name=parts.hostname,
            user=None if parts.username is None else unquote(parts.username),
            password=None if parts.password is None else unquote(parts.password),
        )

    def __str__(self) -> str:
        """The address without its credentials, for a message."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def credentials(server: Server, options: config.Nats, info: Info) -> dict[str, str]:
    """Return the fields of CONNECT that log in to `server`, whose `info` has the nonce to be signed.

    Files are read each time, so that they may change while the broker runs. Raises `OSError` and
    `ValueError` for unusable ones.
    """
    fields = {}
    if server.password is not None:
        fields = {"user": server.user or "", "pass": server.password}
    elif server.user:
        fields = {"auth_token": server.user}
    if options.user is not None:
        fields["user"] = options.user
    if options.password_file is not None:
        try:
            fields["pass"] = options.password_file.read_text().strip()
        except UnicodeDecodeError:
            raise ValueError(f"{options.password_file} is not UTF-8 text") from None
    if options.credentials_file is not None:
        parts = PART.findall(options.credentials_file.read_bytes())
        if len(parts) < 2:
            raise ValueError(f"{options.credentials_file} holds no JWT and seed: is it a .creds file?")
        fields["jwt"] = parts[0].decode()
        _, fields["sig"] = signed(parts[1], info)
    if options.nkey_file is not None:
        found = SEED.search(options.nkey_file.read_bytes())
        if found is None:
            raise ValueError(f"{options.nkey_file} holds no seed of a user (SU…)")
        fields["nkey"], fields["sig"] = signed(found[1], info)
    return fields


def signed(seed: bytes, info: Info) -> tuple[str, str]:
    """Return the public key of a seed, and its signature of the server's nonce."""
    try:
        pair = nkeys.from_seed(bytearray(seed))
        signature = pair.sign((info.nonce or "").encode())
        public = pair.public_key.decode()
        pair.wipe()
    except nkeys.NkeysError as error:
        raise ValueError(f"the seed of the nkey cannot be used: {type(error).__name__}") from error
    return public, base64.urlsafe_b64encode(signature).rstrip(b"=").decode()


def tls_context(options: config.Nats) -> ssl.SSLContext:
    """Return the settings for TLS. Raises `ValueError` for unusable files."""
    try:
        context = ssl.create_default_context(cafile=options.tls_ca)
    except OSError as error:  # which names no file
        raise ValueError(f"tls_ca {options.tls_ca}: {error.strerror}") from None
    if options.tls_certificate is not None:
        try:
            context.load_cert_chain(options.tls_certificate, options.tls_key)
        except OSError as error:
            files = f"tls_certificate {options.tls_certificate}, tls_key {options.tls_key}"
            raise ValueError(f"{files}: {error.strerror}") from None
    return context
