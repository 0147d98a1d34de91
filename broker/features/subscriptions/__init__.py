"""`subscribe` and `unsubscribe`: how a client's subscriptions begin and end.

`wishes` checks what is asked for; `joining` resolves a start with NATS and then begins, in one step; `live`
has the live channels brought here while somebody wants them. The subscriptions themselves are the flow's.
"""
