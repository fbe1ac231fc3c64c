"""What ringloop knows of the kernel: system calls, io_uring's structures and constants.

Declarations and one C header; nothing here does anything by itself.
"""
