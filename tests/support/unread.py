"""What happens to a stream while this process, with the bus in it, reads nothing."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

BURST = 20_000  # events of 2,000 bytes: more than the server and the kernels hold for a consumer


def burst(port: int, *, delete: Sequence[int] = ()) -> None:
    """Stores a burst in `EVENTS`, and deletes some sequences; nothing else runs in this thread meanwhile."""
    data = b"PUB events.acme.a 2000\r\n%b\r\n" % bytes(2000) * BURST
    client = socket.create_connection(("127.0.0.1", port))
    with client, client.makefile("rb") as answers:
        client.sendall(b'CONNECT {"verbose":false}\r\nSUB unread 1\r\n' + data + b"PING\r\n")
        while answers.readline() != b"PONG\r\n":
            pass
        # Stored in their turn: the last one may not be there yet.
        wanted = list(delete)
        while wanted:
            asked = json.dumps({"seq": wanted[0]}).encode()
            head = b"PUB $JS.API.STREAM.MSG.DELETE.EVENTS unread %d\r\n" % len(asked)
            client.sendall(head + asked + b"\r\n")
            while not (line := answers.readline()).startswith(b"MSG "):
                assert line
            if json.loads(answers.readline()).get("success"):
                del wanted[0]
