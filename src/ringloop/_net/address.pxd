from ringloop._sys.posix cimport sockaddr, socklen_t

cdef object unpack(const sockaddr *addr, socklen_t n)
cdef object name_of(int fd, bint peer)
