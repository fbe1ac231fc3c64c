"""Where datagrams come from and go to: addresses in Python's form and in the kernel's.

Converting one costs as much as the rest of a small datagram, and programs talk to the
same peers again and again: each conversion is kept in two small tables, by the
kernel's form and by the identity of Python's (an answer goes to the very object that
datagram_received() got). A table holds one peer in each place, and a newcomer takes it.

The tables are shared by all loops: they are used between two Python statements only,
under the GIL. Only immutable names are in them: exact tuples of str and int, str, bytes.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_GET_LENGTH
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

import os

from ringloop._net.address cimport unpack
from ringloop._sys.posix cimport (
    AF_INET, AF_INET6, AF_UNIX, htonl, htons, inet_pton, sockaddr_in, sockaddr_in6, sockaddr_un,
)

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text)
    const char *PyUnicode_AsUTF8(object text) except NULL

cdef enum:
    PLACES = 256
    PATH_OFFSET = 2      # offsetof(sockaddr_un, sun_path)
    MAX_FLOWINFO = 0xfffff

cdef list _by_raw = [None] * PLACES
cdef list _by_name = [None] * PLACES


@cython.final
cdef class Peer:
    """An address in both forms; never changed once it is made."""


cdef Py_ssize_t _place_of_raw(const sockaddr *addr, socklen_t n) noexcept:
    cdef uint64_t mixed = n
    cdef uint64_t word = 0
    cdef const char *p = <const char *>addr
    while n >= 8:
        memcpy(&word, p, 8)
        mixed = (mixed ^ word) * 0x9e3779b97f4a7c15ULL
        mixed ^= mixed >> 32
        p += 8
        n -= 8
    if n:
        word = 0
        memcpy(&word, p, n)
        mixed = (mixed ^ word) * 0x9e3779b97f4a7c15ULL
    return <Py_ssize_t>(mixed >> 56)


cdef Py_ssize_t _place_of_name(object name) noexcept:
    return <Py_ssize_t>((<uint64_t><PyObject *>name * 0x9e3779b97f4a7c15ULL) >> 56)


cdef Peer peer_of_raw(const sockaddr *addr, socklen_t n):
    """The sender of a datagram; its name is None if it has none, or one that we do not know."""
    cdef Py_ssize_t place
    cdef Peer peer
    n = min(n, <socklen_t>sizeof(sockaddr_storage))
    place = _place_of_raw(addr, n)
    peer = <Peer>_by_raw[place]
    if peer is not None and peer.n == n and memcmp(&peer.raw, addr, n) == 0:
        return peer
    peer = Peer.__new__(Peer)
    memcpy(&peer.raw, addr, n)
    peer.n = n
    peer.name = unpack(addr, n)
    if peer.name is not None:
        _by_raw[place] = peer
        _by_name[_place_of_name(peer.name)] = peer
    return peer


cdef Peer peer_of_name(object name, int family):
    """The receiver of a datagram on a socket of that family."""
    cdef Py_ssize_t place = _place_of_name(name)
    cdef Peer peer = <Peer>_by_name[place]
    if peer is not None and peer.name is name and peer.raw.ss_family == family:
        return peer
    peer = Peer.__new__(Peer)
    peer.name = name
    if _pack(peer, name, family):
        _by_name[place] = peer
    return peer


cdef bint _number(object value, long highest, uint32_t *number) except -1:
    if type(value) is not int or not 0 <= value <= highest:
        return False
    number[0] = value
    return True


cdef bint _pack(Peer peer, object name, int family) except -1:
    """The kernel's form of plain addresses without anything to look up.

    Everything else (host names, flaws) is left to the socket module, which resolves it or
    has the right words for it.
    """
    cdef sockaddr_in *v4 = <sockaddr_in *>&peer.raw
    cdef sockaddr_in6 *v6 = <sockaddr_in6 *>&peer.raw
    cdef sockaddr_un *un = <sockaddr_un *>&peer.raw
    cdef uint32_t port = 0, flow = 0, scope = 0
    cdef const char *host
    cdef bytes path
    cdef Py_ssize_t n
    if family == AF_UNIX:
        if type(name) is not str and type(name) is not bytes:
            return False
        path = os.fsencode(name)
        n = PyBytes_GET_SIZE(path)
        if not 0 < n < <Py_ssize_t>sizeof(un.sun_path):
            return False
        if path[0] and 0 in path:
            return False
        memcpy(un.sun_path, PyBytes_AS_STRING(path), n)
        # A path ends with its zero byte, an abstract name with its last one.
        peer.n = <socklen_t>(PATH_OFFSET + n + (path[0] != 0))
        un.sun_family = AF_UNIX
        return True
    if type(name) is not tuple or len(<tuple>name) < 2 or type(name[0]) is not str:
        return False
    if not PyUnicode_IS_ASCII(name[0]) or not _number(name[1], 65535, &port):
        return False
    host = PyUnicode_AsUTF8(name[0])
    for n in range(PyUnicode_GET_LENGTH(name[0])):
        if host[n] == 0:
            return False
    if family == AF_INET:
        if len(<tuple>name) != 2 or inet_pton(AF_INET, host, &v4.sin_addr) != 1:
            return False
        v4.sin_port = htons(<unsigned short>port)
        v4.sin_family = AF_INET
        peer.n = sizeof(sockaddr_in)
        return True
    if family != AF_INET6 or len(<tuple>name) > 4:
        return False
    if len(<tuple>name) > 2 and not _number(name[2], MAX_FLOWINFO, &flow):
        return False
    if len(<tuple>name) > 3 and not _number(name[3], 0xffffffff, &scope):
        return False
    if inet_pton(AF_INET6, host, &v6.sin6_addr) != 1:
        return False
    v6.sin6_port = htons(<unsigned short>port)
    v6.sin6_flowinfo = htonl(flow)
    v6.sin6_scope_id = scope
    v6.sin6_family = AF_INET6
    peer.n = sizeof(sockaddr_in6)
    return True
