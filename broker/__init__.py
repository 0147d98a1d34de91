"""The broker: events from NATS to WebSocket clients, in order, once, per tenant.

Rooms, from the top down. Imports go strictly downwards; rooms on one line do not import each other::

    __main__ · cli · (app | bench) · reloading · web · links · http · operations · actors · features
    · session · keyed · flow · eventlog · tracing · parts · (auth | bus | client | systemd) · wire
    · (limits | permissions) · (documents | subjects) · log
    · (backoff | beats | config | descriptors | docs | metrics | ranges | signals) · errors

A feature is a file or folder of `features`, its classes in `wire.messages` if it has messages, and a line in
`actors.supervisor.make_features`. A transport is a file or folder of `links`, and a line in `web.routes`.

`app` is the composition root and alone picks the implementations of the ports (`bus.base.Bus`,
`actors.transport.Transport`). The pure core (`wire`, `documents`, `subjects`, `limits`, `permissions`,
`config`, `errors`) does no I/O and takes the time as an argument. import-linter
enforces all of this (see `pyproject.toml`).
"""
