"""The operating system beside sockets: signals, pipes, processes, and what the standard
library does for us.

Later also names (DNS) of our own.
"""
