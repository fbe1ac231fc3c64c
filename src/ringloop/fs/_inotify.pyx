"""The calls of inotify."""
from libc.stdint cimport uint32_t

import os

from ringloop._sys.errno cimport errno

cdef extern from "<sys/inotify.h>" nogil:
    int c_init "inotify_init1" (int flags)
    int c_add "inotify_add_watch" (int fd, const char *path, uint32_t mask)
    enum:
        c_CREATE "IN_CREATE"
        c_MODIFY "IN_MODIFY"
        c_DELETE "IN_DELETE"
        c_DELETE_SELF "IN_DELETE_SELF"
        c_MOVE_SELF "IN_MOVE_SELF"
        c_MOVED_FROM "IN_MOVED_FROM"
        c_MOVED_TO "IN_MOVED_TO"
        c_IGNORED "IN_IGNORED"
        c_OVERFLOW "IN_Q_OVERFLOW"
        c_ISDIR "IN_ISDIR"
        c_CLOEXEC "IN_CLOEXEC"
        c_NONBLOCK "IN_NONBLOCK"

CREATE = c_CREATE
MODIFY = c_MODIFY
DELETE = c_DELETE
DELETE_SELF = c_DELETE_SELF
MOVE_SELF = c_MOVE_SELF
MOVED_FROM = c_MOVED_FROM
MOVED_TO = c_MOVED_TO
IGNORED = c_IGNORED
OVERFLOW = c_OVERFLOW
ISDIR = c_ISDIR


def init():
    """A new inotify descriptor that does not block."""
    cdef int fd = c_init(c_CLOEXEC | c_NONBLOCK)
    if fd < 0:
        raise OSError(errno, os.strerror(errno), "inotify_init1")
    return fd


def add_watch(int fd, bytes path, uint32_t mask):
    """Watch `path`; gives the watch's number."""
    cdef int r = c_add(fd, path, mask)
    if r < 0:
        raise OSError(errno, os.strerror(errno), os.fsdecode(path))
    return r
