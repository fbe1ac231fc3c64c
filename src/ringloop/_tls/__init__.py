"""TLS: engines that do no I/O, and a transport over any stream transport."""
