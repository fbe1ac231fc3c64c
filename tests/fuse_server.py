"""A file system in user space with one file, which answers late: what a network one is like.

    python fuse_server.py FOLDER DELAY_S

Mounts itself on FOLDER, says "mounted", and answers until it is unmounted. Everything but names
takes DELAY_S. Needs root and /dev/fuse, and nothing else: the protocol is spoken here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
import threading
import time

NAME, DATA = b"file", b"from far away\n" * 1000
LOOKUP, GETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FLUSH, INIT = 1, 3, 14, 15, 16, 17, 18, 25, 26
OPENDIR, FORGET, INTERRUPT, BATCH_FORGET = 27, 2, 36, 42
HEADER = struct.Struct("IIQQIIII")
ANSWER = struct.Struct("IiQ")
ROOT, FILE = 1, 2


def attributes(node: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if node == ROOT else stat.S_IFREG | 0o644
    size = 0 if node == ROOT else len(DATA)
    return struct.pack(
        "QQQQQQIIIIIIIIII", node, size, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0
    )


def answer(opcode: int, node: int, body: bytes, delay_s: float) -> bytes | int:
    """The body of the answer, or an errno."""
    if opcode == INIT:
        _, minor, readahead = struct.unpack_from("III", body)
        return struct.pack(
            "IIIIHHIIHHI", 7, min(minor, 31), readahead, 0, 16, 12, 131072, 1, 0, 0, 0
        ) + bytes(24)
    if opcode == LOOKUP:
        if body.rstrip(b"\0") != NAME:
            return errno.ENOENT
        # The name is valid for a minute: the dentry cache has it; the attributes never are.
        return struct.pack("QQQQII", FILE, 0, 60, 0, 0, 0) + attributes(FILE)
    if opcode in (OPEN, READ, WRITE, GETATTR, STATFS, FLUSH):
        time.sleep(delay_s)
    if opcode == GETATTR:
        return struct.pack("QII", 0, 0, 0) + attributes(node)
    if opcode in (OPEN, OPENDIR):
        return struct.pack("QII", 1, 0, 0)
    if opcode == READ:
        offset, size = struct.unpack_from("QI", body, 8)
        return DATA[offset : offset + size]
    if opcode == WRITE:  # taken, and forgotten
        return body[16:20] + bytes(4)
    if opcode == STATFS:
        return struct.pack("QQQQQIIII", 1, 0, 0, 1, 0, 4096, 255, 4096, 0) + bytes(24)
    if opcode in (RELEASE, FLUSH):
        return b""
    return errno.ENOSYS


def main() -> None:
    folder, delay_s = sys.argv[1], float(sys.argv[2])
    device = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"test", folder.encode(), b"fuse", 0, options):
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")

    def serve(unique: int, opcode: int, node: int, body: bytes) -> None:
        result = answer(opcode, node, body, delay_s)
        error, data = (-result, b"") if isinstance(result, int) else (0, result)
        try:
            os.write(device, ANSWER.pack(ANSWER.size + len(data), error, unique) + data)
        except FileNotFoundError:
            pass  # it was interrupted

    print("mounted", flush=True)
    while True:
        try:
            request = os.read(device, 1 << 18)
        except OSError as exc:
            if exc.errno == errno.ENODEV:
                return  # unmounted
            raise
        _, opcode, unique, node, *_ = HEADER.unpack_from(request)
        if opcode not in (FORGET, BATCH_FORGET, INTERRUPT):
            body = request[HEADER.size :]
            threading.Thread(target=serve, args=(unique, opcode, node, body), daemon=True).start()


if __name__ == "__main__":
    main()
