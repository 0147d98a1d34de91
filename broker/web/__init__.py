"""HTTP and WebSocket: what stands between a socket and an actor.

`listeners` accept, `links` are one TCP or TLS connection each, `heads` reads and checks a request head,
`upgrade` decides about a WebSocket handshake, `origins` about the page it comes from, `pages` and
`problems` are what is answered otherwise. `gate` and `websocket` speak frames. `server` and `admin`
are the two ports. Of the admin API `api` is the table of routes, `router` finds and answers them,
`openapi` describes them; `asyncapi` describes the protocol of the public port, of which `requests` are the
part without WebSocket. `schemas` is what these share.
"""
