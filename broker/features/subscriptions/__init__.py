"""`subscribe` and `unsubscribe`: how the subscriptions of a client begin and end.

`wishes` checks requests; `joining` resolves a start with NATS and then begins the subscriptions in one step;
`live` subscribes this broker to live subjects while a client needs them. The flow has the subscriptions
themselves.
"""
