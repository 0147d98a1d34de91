"""Links to clients: TCP and TLS, and the transports over them.

`tcp` and `tls` move bytes. `exchange` is one request and its response: what a handler works with. A transport
is a file or folder of its own (`websocket`, `sse`, `poll`) with a `Route`: it parses its request, implements
the `Transport` of a connection, and describes itself. The public port has each of them in its table.
"""
