"""Keyed streams as clients see them: collections of keys in memory, and the watches of connections.

A *collection* is what some patterns of a tenant match, without denied channels: loaded once, joined to the
feed by sequence, and kept while somebody watches. A *watch* is one connection's place in it. While it is
up to date it is a member of a *lane*, whose frames are encoded once for all; otherwise it reads the
collection from its place on, as far as its link accepts. What a frame looks like is the matter of a `Form`.
"""
