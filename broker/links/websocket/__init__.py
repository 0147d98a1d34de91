"""WebSocket: `handshake` opens a link, `gate` checks the heads of its frames, `transport` moves messages."""
