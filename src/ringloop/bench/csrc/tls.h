/* The client's side of TLS, by a libssl that is loaded at run time: no header of OpenSSL
 * is needed to build this. It does not look at the server's certificate. */
#ifndef RINGLOOP_BENCH_TLS_H
#define RINGLOOP_BENCH_TLS_H

#include "common.h"

#include <dlfcn.h>
#include <signal.h>

enum {
    /* OpenSSL 1.1.1 and 3 */
    SSL_ERROR_WANT_READ = 2,
    SSL_ERROR_WANT_WRITE = 3,
    SSL_CTRL_MODE = 33,
    SSL_MODE_PARTIAL_AND_MOVING_WRITES = 1 | 2,
};

static struct {
    void *context;
    const void *(*TLS_client_method)(void);
    void *(*SSL_CTX_new)(const void *method);
    void *(*SSL_new)(void *context);
    void (*SSL_free)(void *tls);
    int (*SSL_set_fd)(void *tls, int fd);
    int (*SSL_connect)(void *tls);
    int (*SSL_read)(void *tls, void *to, int size);
    int (*SSL_write)(void *tls, const void *from, int size);
    int (*SSL_get_error)(const void *tls, int result);
    long (*SSL_ctrl)(void *tls, int command, long number, void *pointer);
} libssl;

static inline void tls_load(const char *path)
{
    void *library = dlopen(path, RTLD_NOW);
    if (!library)
        die("--tls: %s", dlerror());
    const struct {
        const char *name;
        void *at;
    } symbols[] = {
        {"TLS_client_method", &libssl.TLS_client_method},
        {"SSL_CTX_new", &libssl.SSL_CTX_new},
        {"SSL_new", &libssl.SSL_new},
        {"SSL_free", &libssl.SSL_free},
        {"SSL_set_fd", &libssl.SSL_set_fd},
        {"SSL_connect", &libssl.SSL_connect},
        {"SSL_read", &libssl.SSL_read},
        {"SSL_write", &libssl.SSL_write},
        {"SSL_get_error", &libssl.SSL_get_error},
        {"SSL_ctrl", &libssl.SSL_ctrl},
    };
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        void *symbol = dlsym(library, symbols[i].name);
        if (!symbol)
            die("--tls: %s has no %s", path, symbols[i].name);
        memcpy(symbols[i].at, &symbol, sizeof symbol);
    }
    libssl.context = libssl.SSL_CTX_new(libssl.TLS_client_method());
    if (!libssl.context)
        die("--tls: no context could be made");
    signal(SIGPIPE, SIG_IGN); /* libssl writes without MSG_NOSIGNAL */
}

/* The handshake, on a connected socket that blocks; NULL if it fails. */
static inline void *tls_connect(int fd)
{
    void *tls = libssl.SSL_new(libssl.context);
    if (!tls || libssl.SSL_set_fd(tls, fd) != 1)
        die("no memory for TLS");
    libssl.SSL_ctrl(tls, SSL_CTRL_MODE, SSL_MODE_PARTIAL_AND_MOVING_WRITES, NULL);
    if (libssl.SSL_connect(tls) == 1)
        return tls;
    libssl.SSL_free(tls);
    return NULL;
}

/* The result of SSL_read or SSL_write as recv and send would have it. */
static inline ssize_t tls_result(void *tls, int result)
{
    if (result > 0)
        return result;
    int error = libssl.SSL_get_error(tls, result);
    errno = error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? EAGAIN : EPROTO;
    return -1;
}

static inline ssize_t tls_write(void *tls, const char *from, size_t size)
{
    return tls_result(tls, libssl.SSL_write(tls, from, (int)size));
}

static inline ssize_t tls_read(void *tls, char *to, size_t size)
{
    return tls_result(tls, libssl.SSL_read(tls, to, (int)size));
}

#endif
