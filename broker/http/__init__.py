"""HTTP/1.1 and HTTP/1.0 as a server: requests in, responses out, and nothing about sockets.

`heads` reads a request within bounds and checks it, `queries` parses its query, `credentials` finds its
token. `responses` are what is sent back, `refusals` the protocol's errors as such, `chunks` a body of unknown
length.
"""
