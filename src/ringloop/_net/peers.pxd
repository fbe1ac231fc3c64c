from ringloop._sys.posix cimport sockaddr, sockaddr_storage, socklen_t


cdef class Peer:
    cdef object name           # as the socket module has it
    cdef sockaddr_storage raw
    cdef socklen_t n           # of `raw`; 0: only the socket module can convert the name


cdef Peer peer_of_raw(const sockaddr *addr, socklen_t n)
cdef Peer peer_of_name(object name, int family)
