"""The web room on real sockets, against real HTTP and WebSocket peers."""
