"""A tenant's events, from the newest back to the beginning of the stream.

All that there is lies on one ascending axis of *places* (`places`). An `EventLog` (`log`) takes what
arrives as `Tick`s: events encoded once, with a mask for each `Selection` (`routing`) that says which of
them match. It keeps the newest in a `Ring`; older ones are in the stream, read in pages of the same shape
(`history`). `EventLog.read` answers what comes after a place, from wherever that is: a `Page`, or `Missing`
when the stream has to be asked first. Where the ring ends and the stream begins is known in here and
nowhere else.

Also here: where a subscription begins (`starts`), the newest event of each channel (`snapshots`), and what
has been deleted from the stream (`gone`).
"""
