"""File systems that another machine or process answers for: NFS, FUSE and their like.

For those, no call is answered from the caches alone: the dentry cache knows the name, and
`open`, `fstat` and `close` ask the server all the same. What is on them goes to the ring or
a thread. Which they are is read from the mount table, which says by poll() when it changed.
"""
from libc.stdint cimport int64_t, uint64_t

import os

from ringloop._sys.posix cimport (
    CLOCK_MONOTONIC_COARSE, POLLERR, clock_gettime, poll, pollfd, timespec,
)

cdef enum:
    LOOK_EVERY_MS = 10  # at whether the mount table has changed
    MAX_FAR = 64        # with more of them, every device is taken for one

cdef int _table = -1
cdef int64_t _looked_ms = 0
cdef uint64_t[MAX_FAR] _devices
cdef int _count = 0

_NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "gpfs", "lustre", "nfs", "nfs4", "ocfs2",
    "orangefs", "prl_fs", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs",
}


def _read_table():
    global _count
    found = set()
    os.lseek(_table, 0, os.SEEK_SET)
    data = b""
    while piece := os.read(_table, 1 << 20):
        data += piece
    for line in data.splitlines():
        fields, _, rest = line.partition(b" - ")
        kind = rest.split(b" ", 1)[0].decode()
        if kind in _NETWORK or (kind.startswith("fuse") and kind != "fusectl"):
            major, _, minor = fields.split(b" ", 3)[2].decode().partition(":")
            found.add(os.makedev(int(major), int(minor)))
    _count = min(len(found), MAX_FAR)
    for i, device in enumerate(sorted(found)[:MAX_FAR]):
        _devices[i] = device


def _open_table():
    """Also in a forked child, whose mounts may become others."""
    global _table
    if _table >= 0:
        os.close(_table)
        _table = -1
    try:
        _table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        _read_table()
    except OSError:
        pass  # no /proc: it is not known


cdef bint may_be_far() noexcept:
    """Whether there are any. Looks now and then whether that has changed."""
    global _looked_ms
    cdef pollfd p
    cdef timespec now
    cdef int64_t now_ms
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now)
    now_ms = now.tv_sec * 1000 + now.tv_nsec // 1000000
    if now_ms - _looked_ms >= LOOK_EVERY_MS and _table >= 0:
        _looked_ms = now_ms
        p.fd = _table
        p.events = 0
        p.revents = 0
        if poll(&p, 1, 0) == 1 and p.revents & POLLERR:
            try:
                _read_table()
            except OSError:
                pass  # then by what was known
    return _count > 0


cdef bint is_far(uint64_t device) noexcept:
    cdef int i
    for i in range(_count):
        if _devices[i] == device or _count == MAX_FAR:
            return True
    return False


_open_table()
os.register_at_fork(after_in_child=_open_table)
