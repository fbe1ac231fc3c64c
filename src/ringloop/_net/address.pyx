"""Socket addresses: the kernel's structures as Python's tuples.

The same values as the `socket` module gives, for IPv4, IPv6 and Unix sockets.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize

import os

from ringloop._sys.posix cimport (
    AF_INET, AF_INET6, AF_UNIX, INET6_ADDRSTRLEN, SO_PEERNAME, SOL_SOCKET, getpeername,
    getsockname, getsockopt, inet_ntop, ntohl, ntohs, sockaddr, sockaddr_in, sockaddr_in6,
    sockaddr_storage, sockaddr_un, socklen_t,
)

cdef enum:
    PATH_OFFSET = 2  # offsetof(sockaddr_un, sun_path)


cdef object unpack(const sockaddr *addr, socklen_t n):
    """The Python form of an address; None for a family that we do not know."""
    cdef char text[INET6_ADDRSTRLEN]
    cdef const sockaddr_in *v4 = <const sockaddr_in *>addr
    cdef const sockaddr_in6 *v6 = <const sockaddr_in6 *>addr
    cdef const sockaddr_un *un = <const sockaddr_un *>addr
    cdef bytes path
    if n < <socklen_t>sizeof(unsigned short):
        return None
    if addr.sa_family == AF_INET and n >= <socklen_t>sizeof(sockaddr_in):
        inet_ntop(AF_INET, &v4.sin_addr, text, INET6_ADDRSTRLEN)
        return (text.decode("ascii"), ntohs(v4.sin_port))
    if addr.sa_family == AF_INET6 and n >= <socklen_t>sizeof(sockaddr_in6):
        inet_ntop(AF_INET6, &v6.sin6_addr, text, INET6_ADDRSTRLEN)
        return (text.decode("ascii"), ntohs(v6.sin6_port), ntohl(v6.sin6_flowinfo),
                v6.sin6_scope_id)
    if addr.sa_family == AF_UNIX:
        if n <= PATH_OFFSET:
            return ""  # unnamed
        path = un.sun_path[:n - PATH_OFFSET]
        if path[0] == 0:
            return path  # abstract: bytes, zeros and all
        return os.fsdecode(path.split(b"\0", 1)[0])
    return None


cdef object name_of(int fd, bint peer):
    """getpeername() or getsockname() as raw bytes, for `unpack` later; None if none."""
    cdef sockaddr_storage addr
    cdef socklen_t n = sizeof(addr)
    cdef int r
    if peer:
        r = getpeername(fd, <sockaddr *>&addr, &n)
        if r < 0:
            # The peer has reset the connection. This still knows, if asked for the very size.
            n = sizeof(sockaddr_in6)
            r = getsockopt(fd, SOL_SOCKET, SO_PEERNAME, &addr, &n)
        if r < 0:
            n = sizeof(sockaddr_in)
            r = getsockopt(fd, SOL_SOCKET, SO_PEERNAME, &addr, &n)
    else:
        r = getsockname(fd, <sockaddr *>&addr, &n)
    if r < 0:
        return None
    return PyBytes_FromStringAndSize(<char *>&addr, min(n, <socklen_t>sizeof(addr)))
