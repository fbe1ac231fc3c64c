"""Extern declarations of the POSIX and Linux calls that Cython does not ship."""
from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from "<sys/types.h>" nogil:
    ctypedef unsigned int socklen_t

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t writev(int fd, const iovec *iov, int n)

cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        unsigned short sa_family
    struct sockaddr_storage:
        unsigned short ss_family
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned msg_len
    enum:
        AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX
        SOCK_STREAM, SOCK_NONBLOCK, SOCK_CLOEXEC
        SOL_SOCKET, SO_PEERNAME
        SHUT_WR
        MSG_NOSIGNAL, MSG_DONTWAIT
    ssize_t recv(int fd, void *buf, size_t n, int flags)
    ssize_t send(int fd, const void *buf, size_t n, int flags)
    ssize_t sendmsg(int fd, const msghdr *msg, int flags)
    int recvmmsg(int fd, mmsghdr *msgs, unsigned n, int flags, timespec *timeout)
    ssize_t sendto(int fd, const void *buf, size_t n, int flags, const sockaddr *addr,
                   socklen_t addr_n)
    int accept4(int fd, sockaddr *addr, socklen_t *n, int flags)
    int shutdown(int fd, int how)
    int setsockopt(int fd, int level, int option, const void *value, socklen_t n)
    int getsockopt(int fd, int level, int option, void *value, socklen_t *n)
    int getsockname(int fd, sockaddr *addr, socklen_t *n)
    int getpeername(int fd, sockaddr *addr, socklen_t *n)
    int socketpair(int family, int type, int proto, int *fds)

cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        uint32_t s_addr
    struct in6_addr:
        pass
    struct sockaddr_in:
        unsigned short sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        unsigned short sin6_family
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    enum:
        INET6_ADDRSTRLEN, IPPROTO_TCP
    uint16_t ntohs(uint16_t v)
    uint32_t ntohl(uint32_t v)
    uint16_t htons(uint16_t v)
    uint32_t htonl(uint32_t v)

cdef extern from "<netinet/tcp.h>" nogil:
    enum:
        TCP_NODELAY

cdef extern from "<sys/un.h>" nogil:
    struct sockaddr_un:
        unsigned short sun_family
        char sun_path[108]

cdef extern from "<arpa/inet.h>" nogil:
    const char *inet_ntop(int family, const void *src, char *dst, socklen_t n)
    int inet_pton(int family, const char *src, void *dst)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        void *ptr
        int fd
        uint32_t u32
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    enum:
        EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLL_CLOEXEC
    # Macros, because some do not fit an int.
    uint32_t EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLLPRI, EPOLLONESHOT, EPOLLET
    int epoll_create1(int flags)
    int epoll_ctl(int ep, int op, int fd, epoll_event *ev)
    int epoll_wait(int ep, epoll_event *evs, int n, int timeout_ms)

cdef extern from "<sys/eventfd.h>" nogil:
    enum:
        EFD_CLOEXEC, EFD_NONBLOCK
    int eventfd(unsigned init, int flags)

cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN, POLLOUT, POLLERR, POLLHUP, POLLPRI, POLLRDHUP
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long n, int timeout_ms)

cdef extern from "<sys/mman.h>" nogil:
    enum:
        PROT_READ, PROT_WRITE, MAP_SHARED, MAP_POPULATE, MAP_PRIVATE, MAP_ANONYMOUS
        MADV_DONTFORK
    void *MAP_FAILED
    void *mmap(void *addr, size_t n, int prot, int flags, int fd, long off)
    int munmap(void *addr, size_t n)
    int madvise(void *addr, size_t n, int advice)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t write(int fd, const void *p, size_t n)
    ssize_t read(int fd, void *p, size_t n)

cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_MONOTONIC, CLOCK_MONOTONIC_COARSE
    int clock_gettime(int clock, timespec *ts)
