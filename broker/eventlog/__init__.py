"""A tenant's events, from the newest back to the beginning of the stream.

All of them lie on one ascending axis of *places* (`places`). An `EventLog` (`log`) takes what arrives as
`Tick`s: events encoded once, with a mask for each `Selection` (`routing`) that says which of them match. It
keeps the newest in a `Ring`; older ones are in the stream, read in pages of the same shape (`history`).
`EventLog.read` returns what follows a place, from either: a `Page`, or `Missing` if the stream has to be read
first. Where the ring ends and the stream begins is known in this package and nowhere else.

Also here: where a subscription begins (`starts`), the newest event of each channel (`snapshots`), and what
has been deleted from the stream (`gone`).
"""
