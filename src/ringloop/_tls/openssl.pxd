"""The functions of libssl and libcrypto that the direct engine calls, with our own prototypes."""

cdef extern from *:
    """
    typedef struct ssl_st RLSSL;
    typedef struct ssl_ctx_st RLSSL_CTX;
    typedef struct bio_st RLBIO;
    typedef struct bio_method_st RLBIO_METHOD;
    """
    ctypedef struct SSL "RLSSL":
        pass
    ctypedef struct SSL_CTX "RLSSL_CTX":
        pass
    ctypedef struct BIO "RLBIO":
        pass
    ctypedef struct BIO_METHOD "RLBIO_METHOD":
        pass

ctypedef int (*bio_read_t)(BIO *, char *, int) noexcept nogil
ctypedef int (*bio_write_t)(BIO *, const char *, int) noexcept nogil
ctypedef long (*bio_ctrl_t)(BIO *, int, long, void *) noexcept nogil
ctypedef int (*bio_create_t)(BIO *) noexcept nogil

ctypedef struct Libssl:
    int (*SSL_read)(SSL *, void *, int) noexcept nogil
    int (*SSL_write)(SSL *, const void *, int) noexcept nogil
    int (*SSL_get_error)(const SSL *, int) noexcept nogil
    int (*SSL_pending)(const SSL *) noexcept nogil
    long (*SSL_ctrl)(SSL *, int, long, void *) noexcept nogil
    unsigned long long (*SSL_set_options)(SSL *, unsigned long long) noexcept nogil
    void (*SSL_set_bio)(SSL *, BIO *, BIO *) noexcept nogil
    BIO *(*SSL_get_rbio)(const SSL *) noexcept nogil
    BIO *(*SSL_get_wbio)(const SSL *) noexcept nogil
    SSL_CTX *(*SSL_get_SSL_CTX)(const SSL *) noexcept nogil
    void *(*SSL_get_ex_data)(const SSL *, int) noexcept nogil
    const void *(*SSL_get_ssl_method)(const SSL *) noexcept nogil
    unsigned long long (*SSL_CTX_get_options)(const SSL_CTX *) noexcept nogil
    const void *(*TLS_client_method)() noexcept nogil
    const char *(*OpenSSL_version)(int) noexcept nogil
    void (*ERR_clear_error)() noexcept nogil
    unsigned long (*ERR_peek_error)() noexcept nogil
    const void *(*BIO_s_mem)() noexcept nogil
    size_t (*BIO_ctrl_pending)(BIO *) noexcept nogil
    int (*BIO_get_new_index)() noexcept nogil
    BIO_METHOD *(*BIO_meth_new)(int, const char *) noexcept nogil
    int (*BIO_meth_set_read)(BIO_METHOD *, bio_read_t) noexcept nogil
    int (*BIO_meth_set_write)(BIO_METHOD *, bio_write_t) noexcept nogil
    int (*BIO_meth_set_ctrl)(BIO_METHOD *, bio_ctrl_t) noexcept nogil
    BIO *(*BIO_new)(const BIO_METHOD *) noexcept nogil
    int (*BIO_free)(BIO *) noexcept nogil
    int (*BIO_up_ref)(BIO *) noexcept nogil
    void (*BIO_set_init)(BIO *, int) noexcept nogil
    void (*BIO_set_data)(BIO *, void *) noexcept nogil
    void *(*BIO_get_data)(BIO *) noexcept nogil
    void (*BIO_set_flags)(BIO *, int) noexcept nogil
    void (*BIO_clear_flags)(BIO *, int) noexcept nogil


cdef Libssl lib

cpdef object why_not_direct()
cdef SSL *ssl_of(object ssl_object, object incoming, object outgoing) except? NULL
