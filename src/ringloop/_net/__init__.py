"""Sockets on top of a driver: transports, listeners, `sock_*` and `add_reader`."""
