"""The two ports of the broker.

`server` is the public one: `routes` is its table, `site`, `posts` and `health` are entries of it beside the
transports of `links`; `origins`, `proxies` and `proxy_protocol`, `headroom` are what it checks before.
`admin` is the other one: `api` and `diagnosis` are the table of its API, `router` finds and answers an entry.
`listeners` accept for both. `openapi` describes the API, `asyncapi` the protocol, of which `requests` are the
part without WebSocket.
"""
