"""Finds the libssl that `_ssl` uses, and the `SSL *` inside its objects; believes neither.

Symbols are looked up from `_ssl` itself, so in what it was linked with, and not in
whatever libssl is loaded beside it. Where its objects keep their pointers is known
for each version of Python, and verified at run time on objects made for that
(`why_not_direct`), in this order:

1. Memory is only looked at, through a system call that fails where there is none. In
   it must be what we know by other means: in the SSL structure the addresses of its
   two BIOs and of libssl's TLS_client_method, in a BIO the address of libcrypto's
   BIO_s_mem. So they are what we take them for, and made by the library we found.
2. Then libssl's functions are asked about them. What they say must agree with what the
   `ssl` module says: the BIOs, the Python object an SSL belongs to, bytes that were
   written, options of the context before and after they are changed.

Anything else means the engine on `ssl.MemoryBIO`, with a sentence that says why.
"""
from cpython.object cimport PyObject
from libc.stdint cimport uintptr_t

import _ssl
import os
import ssl
import sys

cdef extern from "unistd.h" nogil:
    int pipe(int *fds)
    int close(int fd)
    ssize_t read(int fd, void *p, size_t n)
    ssize_t write(int fd, const void *p, size_t n)

cdef enum:
    SSL_AT = 24             # offset of `SSL *` in a _ssl._SSLSocket...
    BIO_AT = 16             # ...and of `BIO *` in a _ssl.MemoryBIO
    SSL_SCAN = 512          # bytes of an SSL that hold the pointers we look for
    BIO_SCAN = 64

# Whose objects are laid out so. Read in Modules/_ssl.c of each.
cdef tuple _PYTHONS = ((3, 11), (3, 12), (3, 13))

cdef object _SSLSocket = _ssl._SSLSocket
cdef object _MemoryBIO = ssl.MemoryBIO
cdef object _SSLObject = ssl.SSLObject
cdef bint _tried = False
cdef object _why_not = None


cdef void *word(object o, int offset) noexcept:
    return (<void **>(<char *><PyObject *>o + offset))[0]


cdef bytes look(const void *p, size_t n):
    """`n` bytes of memory, or None if that is not memory of ours."""
    cdef int fds[2]
    cdef char copy[SSL_SCAN]
    cdef ssize_t got
    if p == NULL or <uintptr_t>p % sizeof(void *) or n > sizeof(copy):
        return None
    if pipe(fds) < 0:
        return None
    got = write(fds[1], p, n)  # EFAULT, and no crash
    if got == <ssize_t>n:
        got = read(fds[0], copy, n)
    close(fds[0])
    close(fds[1])
    return copy[:n] if got == <ssize_t>n else None


cdef bint holds(bytes memory, const void *p):
    """Whether a pointer with this value lies in it."""
    cdef const char *start = memory
    cdef Py_ssize_t i
    for i in range(0, len(memory) - 7, sizeof(void *)):
        if (<void **>(start + i))[0] == p:
            return True
    return False


cdef object find_symbols():
    """Fill `lib`; a sentence if that cannot be.

    Not by dlopen() and dlsym(): glibc has moved them between its libraries, and a wheel that
    calls them runs on the newer ones only. ctypes was built where it runs.
    """
    path = getattr(_ssl, "__file__", None)
    if path is None:
        return "the _ssl module is part of the interpreter"
    cdef list missing = []
    cdef void **slot
    try:
        import ctypes
    except ImportError:
        return "this Python was built without ctypes, which finds libssl's functions"
    try:
        library = ctypes.CDLL(path, mode=os.RTLD_LAZY | os.RTLD_NOLOAD)
    except OSError:
        return f"{path} is not loaded as a shared library"

    for name, at in (
        ("SSL_read", <uintptr_t>&lib.SSL_read),
        ("SSL_write", <uintptr_t>&lib.SSL_write),
        ("SSL_get_error", <uintptr_t>&lib.SSL_get_error),
        ("SSL_pending", <uintptr_t>&lib.SSL_pending),
        ("SSL_ctrl", <uintptr_t>&lib.SSL_ctrl),
        ("SSL_set_options", <uintptr_t>&lib.SSL_set_options),
        ("SSL_set_bio", <uintptr_t>&lib.SSL_set_bio),
        ("SSL_get_rbio", <uintptr_t>&lib.SSL_get_rbio),
        ("SSL_get_wbio", <uintptr_t>&lib.SSL_get_wbio),
        ("SSL_get_SSL_CTX", <uintptr_t>&lib.SSL_get_SSL_CTX),
        ("SSL_get_ex_data", <uintptr_t>&lib.SSL_get_ex_data),
        ("SSL_get_ssl_method", <uintptr_t>&lib.SSL_get_ssl_method),
        ("SSL_CTX_get_options", <uintptr_t>&lib.SSL_CTX_get_options),
        ("TLS_client_method", <uintptr_t>&lib.TLS_client_method),
        ("OpenSSL_version", <uintptr_t>&lib.OpenSSL_version),
        ("ERR_clear_error", <uintptr_t>&lib.ERR_clear_error),
        ("ERR_peek_error", <uintptr_t>&lib.ERR_peek_error),
        ("BIO_s_mem", <uintptr_t>&lib.BIO_s_mem),
        ("BIO_ctrl_pending", <uintptr_t>&lib.BIO_ctrl_pending),
        ("BIO_get_new_index", <uintptr_t>&lib.BIO_get_new_index),
        ("BIO_meth_new", <uintptr_t>&lib.BIO_meth_new),
        ("BIO_meth_set_read", <uintptr_t>&lib.BIO_meth_set_read),
        ("BIO_meth_set_write", <uintptr_t>&lib.BIO_meth_set_write),
        ("BIO_meth_set_ctrl", <uintptr_t>&lib.BIO_meth_set_ctrl),
        ("BIO_new", <uintptr_t>&lib.BIO_new),
        ("BIO_free", <uintptr_t>&lib.BIO_free),
        ("BIO_up_ref", <uintptr_t>&lib.BIO_up_ref),
        ("BIO_set_init", <uintptr_t>&lib.BIO_set_init),
        ("BIO_set_data", <uintptr_t>&lib.BIO_set_data),
        ("BIO_get_data", <uintptr_t>&lib.BIO_get_data),
        ("BIO_set_flags", <uintptr_t>&lib.BIO_set_flags),
        ("BIO_clear_flags", <uintptr_t>&lib.BIO_clear_flags),
    ):
        slot = <void **><uintptr_t>at
        try:
            slot[0] = <void *><uintptr_t>ctypes.addressof(ctypes.c_char.in_dll(library, name))
        except ValueError:
            missing.append(name)
    if missing:
        return f"{path} does not show {', '.join(missing)}: libssl is hidden inside it"
    if lib.OpenSSL_version(0).decode() != ssl.OPENSSL_VERSION:
        return f"the libssl found is not the {ssl.OPENSSL_VERSION} of the ssl module"
    return None


cdef object verify_layout():
    """Compare what is in the objects with what we know; a sentence if it differs."""
    cdef BIO *rbio
    cdef BIO *wbio
    cdef SSL *s
    cdef SSL_CTX *ctx
    cdef bytes memory
    wrong = "the ssl module's objects are not laid out as known: "
    if _MemoryBIO.__basicsize__ < BIO_AT + 8 or _SSLSocket.__basicsize__ < SSL_AT + 8:
        return wrong + "they are too small"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(b"12345")
    ssl_object = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    raw = ssl_object._sslobj
    if type(raw) is not _SSLSocket or type(incoming) is not _MemoryBIO:
        return wrong + "they are of other types"

    # 1. Looking only.
    rbio = <BIO *>word(incoming, BIO_AT)
    wbio = <BIO *>word(outgoing, BIO_AT)
    s = <SSL *>word(raw, SSL_AT)
    for pointer in (<uintptr_t>rbio, <uintptr_t>wbio):
        memory = look(<void *><uintptr_t>pointer, BIO_SCAN)
        if memory is None or not holds(memory, lib.BIO_s_mem()):
            return wrong + "no BIO in a MemoryBIO"
    memory = look(s, SSL_SCAN)
    if memory is None or not (holds(memory, rbio) and holds(memory, wbio)
                              and holds(memory, lib.TLS_client_method())):
        return wrong + "no SSL in an SSLObject"

    # 2. Asking.
    if lib.SSL_get_rbio(s) != rbio or lib.SSL_get_wbio(s) != wbio or rbio == wbio:
        return wrong + "libssl names other BIOs"
    if lib.SSL_get_ssl_method(s) != lib.TLS_client_method():
        return wrong + "libssl names another method"
    if lib.SSL_get_ex_data(s, 0) != <void *><PyObject *>raw:
        return wrong + "libssl names another owner"
    if lib.BIO_ctrl_pending(rbio) != 5 or lib.BIO_ctrl_pending(wbio) != 0:
        return wrong + "the BIOs hold something else"
    ctx = lib.SSL_get_SSL_CTX(s)
    for option in (ssl.OP_NO_TICKET, ssl.OP_NO_RENEGOTIATION):
        for options in (context.options | option, context.options & ~option):
            context.options = options
            if lib.SSL_CTX_get_options(ctx) & 0xffffffff != int(context.options) & 0xffffffff:
                return wrong + "the context has other options"
    return None


cpdef object why_not_direct():
    """Why libssl cannot be called directly, in a sentence; None if it can."""
    global _tried, _why_not
    if not _tried:
        _tried = True
        if sys.implementation.name != "cpython" or sys.version_info[:2] not in _PYTHONS:
            _why_not = f"the layout of the ssl module of {sys.version.split()[0]} is not known"
        elif ssl.OPENSSL_VERSION_INFO[0] != 3 or not ssl.OPENSSL_VERSION.startswith("OpenSSL "):
            _why_not = f"{ssl.OPENSSL_VERSION} is not OpenSSL 3"
        elif sizeof(void *) != 8:
            _why_not = "it is not known for 32 bits"
        else:
            _why_not = find_symbols()
            if _why_not is None:
                _why_not = verify_layout()
    return _why_not


cdef SSL *ssl_of(object ssl_object, object incoming, object outgoing) except? NULL:
    """The SSL of an object made with these two BIOs; NULL if it is of another kind."""
    cdef SSL *s
    if type(ssl_object) is not _SSLObject or type(ssl_object._sslobj) is not _SSLSocket:
        return NULL
    s = <SSL *>word(ssl_object._sslobj, SSL_AT)
    if (s == NULL or lib.SSL_get_rbio(s) != <BIO *>word(incoming, BIO_AT)
            or lib.SSL_get_wbio(s) != <BIO *>word(outgoing, BIO_AT)):
        return NULL
    return s
