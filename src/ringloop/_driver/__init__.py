"""The drivers: operations on file descriptors in, completions out.

`base.pyx` has the contract, `uring.pyx` (on `ring.pyx`) and `epoll.pyx` keep it, and
`choose.py` finds out which of them works here.
"""
