"""The broker on this machine, by its data directory: its key and its addresses."""

from __future__ import annotations

import json
import os
import secrets
from typing import TYPE_CHECKING, Any

from broker import config
from broker.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

KEY_FILE = "dev.key"
KEY_BYTES = 32  # the size of the hash of HS256 (RFC 7518 section 3.2)
RUNNING_FILE = "broker.json"
EVERYTHING = [">", "live.>"]
DEMO_ORDER = "demo.order"  # a document, on whose changes the demo service decides
STREAM_BYTES = 1 << 30  # a trial must not fill the disk


def find_data_dir(given: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the data directory of a broker without a configuration file."""
    section = config.load(None, environ, production=False).server
    return (given or section.data_dir or config.default_data_dir()).absolute()


def make_key(data_dir: Path) -> None:
    """Write a key into the data directory, readable by its owner alone, unless there is one."""
    path = data_dir / KEY_FILE
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            return
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
    except OSError as error:
        raise config.unusable(data_dir, error) from None


def development(data_dir: Path, environ: Mapping[str, str], **server: str) -> config.Config:
    """Return the configuration of `broker dev`: the key in the data directory may do everything."""
    key = {"name": "dev", "secret_file": str(data_dir / KEY_FILE), "tenants": ["*"], "monitoring": True}
    tables: dict[str, Any] = {
        "server": {"data_dir": str(data_dir), **server},
        "auth": {"keys": [key]},
        "permissions": {"subscribe": EVERYTHING, "publish": EVERYTHING, "request": [">"], "change": [">"]},
        "stream": {"max_bytes": STREAM_BYTES},
        "state": {
            "documents": [
                {"channel": DEMO_ORDER, "owner": "service"},
                *({"channel": each} for each in (">", "users.>")),
            ]
        },
    }
    return config.build(tables, environ, production=False)


def signing(data_dir: Path, environ: Mapping[str, str]) -> config.Config:
    """Return the same for signing a token. Raises `Unavailable` where there is no key yet."""
    settings = development(data_dir, environ)
    if not (data_dir / KEY_FILE).exists() and settings.auth.keys[0].secret is None:
        step = "start `broker dev`, which generates it, or use a token of `broker token --config FILE`"
        raise Unavailable(f"there is no {KEY_FILE} in {data_dir}: {step}")
    return settings


def running(data_dir: Path, name: str) -> str:
    """Return an address of the running broker: "ws", "http", "admin" or "nats".

    Raises `Unavailable`.
    """
    file = data_dir / RUNNING_FILE
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))[name])
    except PermissionError as error:
        step = "be root or the user of the broker"
        raise Unavailable(f"{file} cannot be read: {error.strerror}; {step}") from None
    except (OSError, ValueError, KeyError, TypeError):
        step = (
            "`broker dev` starts one, and --data-dir names another's directory (a service's: /var/lib/broker)"
        )
        raise Unavailable(f"no broker is ready on {data_dir}: {step}") from None
