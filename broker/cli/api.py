"""Client of the admin API for commands: its address, its token, and its answers as exit codes."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

import attrs
import click

from broker import config
from broker.auth import admin as admin_token
from broker.cli import local
from broker.errors import BrokerError, ConfigError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from http.client import HTTPResponse
    from pathlib import Path

SECONDS = 60.0  # a purge by reason reads a whole stream
USED_WRONGLY = (400, 413)


class Refused(BrokerError):
    """The broker refused the request."""


@attrs.frozen(kw_only=True)
class Api:
    """One broker's admin API. `url` is "http://HOST[:PORT]"; `source` is where the token comes from."""

    url: str
    token: str = attrs.field(repr=False)
    source: str

    @classmethod
    def find(cls, url: str | None, token_file: Path | None, data_dir: Path | None) -> Api:
        """Find the API by the options, else by the environment and the data directory.

        Raises `Unavailable`.
        """
        where = local.find_data_dir(data_dir, os.environ)
        address = url or local.running(where, "admin")
        configured = config.load(None, os.environ, production=False).server.admin_token_file
        path = token_file or configured or where / admin_token.TOKEN_FILE
        try:
            token = admin_token.read(path, "--token-file")
        except ConfigError as error:
            raise Unavailable(f"{error.message}; name a file with the admin token by --token-file") from None
        return cls(url=address, token=token, source=str(path))

    def ask(
        self, method: str, *path: str, query: Mapping[str, object] | None = None, body: bytes | None = None
    ) -> Any:
        """Send one request, with the parameters of `query` that are not None, and return the answer.

        Raises `Unavailable`, `Refused`, and `click.UsageError` for a request that the broker does not accept.
        """
        with self.request(method, path, query or {}, body) as response:
            status, answer = response.status, response.read()
        return self.understood(status, answer)

    def lines(self, *path: str, query: Mapping[str, object], seconds: float) -> Iterator[Any]:
        """Yield the lines of an answer as they arrive, for at most so many seconds. Raises as `ask`."""
        with self.request("GET", path, query, None, seconds + SECONDS) as response:
            if response.status != HTTPStatus.OK:
                self.understood(response.status, response.read())
            with suppress(OSError, HTTPException):  # cut off: the caller notices the missing end
                while (line := response.readline()).endswith(b"\n"):
                    yield json.loads(line)

    @contextmanager
    def request(
        self,
        method: str,
        path: Sequence[str],
        query: Mapping[str, object],
        body: bytes | None,
        seconds: float = SECONDS,
    ) -> Iterator[HTTPResponse]:
        target = "/api/v1/" + "/".join(quote(each, safe="") for each in path)
        given = {name: shown(value) for name, value in query.items() if value is not None}
        parts = urlsplit(self.url)
        connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = connect(parts.hostname or "", parts.port, timeout=seconds)
        try:
            connection.request(
                method,
                f"{target}?{urlencode(given)}" if given else target,
                body=body,
                headers={"Authorization": f"Bearer {self.token}"},
            )
            yield connection.getresponse()
        except (OSError, HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            hint = "is it the address of the admin port of a running broker?"
            raise Unavailable(f"{self.url} cannot be reached: {reason}; {hint}") from None
        finally:
            connection.close()

    def understood(self, status: int, answer: bytes) -> Any:
        try:
            document = json.loads(answer)
            detail = "" if status < 400 else str(document["detail"])
        except (ValueError, KeyError, TypeError):
            raise Refused(f"{self.url} answered {status}, so it is no admin API of a broker") from None
        if status == 401:
            raise Refused(f"{self.url} refused the token in {self.source}; give another with --token-file")
        if status in USED_WRONGLY:
            raise click.UsageError(detail)
        if status >= 400:
            raise Refused(f"{detail} ({self.url})")
        return document


def shown(value: object) -> str:
    """Return a query parameter in the form that the API reads."""
    return str(value).lower() if isinstance(value, bool) else str(value)
