"""Documents as values: what they may be, how they change, and what becomes of a change. No I/O.

A document is a JSON object. A client changes it by a merge patch (RFC 7396) that says what it replaces;
`judging` decides whether the change applies to what is stored now. `memory` is by what a document itself
knows changes that it has had, and `schemas` what else it has to be.
"""
