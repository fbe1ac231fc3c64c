/* The load generator: N connections to an echo server on 127.0.0.1, each in a closed
 * loop (send a message, read it back, compare every byte, send the next), for a
 * warm-up and then a measured window. Prints one JSON object.
 *
 * With --rate R the loop is open: R requests a second are due at even distances, each
 * connection's in turn, whether or not the server is ready for them. What is due while
 * its connection still waits is sent as soon as it can be, and its latency counts from
 * the time it was due: a server that stalls does not get away with fewer requests.
 * Meanwhile the generator never sleeps, so that waking up is no part of the latencies.
 *
 * Frugal, so that it is the server that is measured: one thread, edge-triggered epoll
 * (no epoll_ctl after the connection is made), no copy of the message in user space.
 *
 * The server's CPU time is read here, at the very edges of the window, from the
 * server's process CPU clock (nanoseconds; user and system time of all its threads,
 * ended ones too). A harness that read it from outside would be late by as long as the
 * scheduler makes it wait. Softirqs that run inside the server's system calls count, as
 * the network stack of the loopback does, unless the kernel keeps them apart
 * (CONFIG_IRQ_TIME_ACCOUNTING); then they count for no server.
 *
 * With --udp a connection is a connected UDP socket, and a message a datagram. One that
 * gets no answer in time is sent again, and counted; its late answer is no error.
 *
 * With --tls LIBSSL it speaks TLS by that library. With --http it asks for / and expects
 * a body of --size bytes. With --hold it makes its connections, one request each, says
 * so, and keeps them until stdin ends.
 *
 * Bounded: it gives up with an error when no answer arrives for --stall seconds, and an
 * alarm ends it a little after the longest time it could need. */
#define _GNU_SOURCE
#include "common.h"
#include "http.h"
#include "latency.h"
#include "tls.h"

#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/time.h>
#include <time.h>

#define NS_PER_S 1000000000ull

enum {
    MAX_CONNECTIONS = 16384,
    MAX_MESSAGE_BYTES = 16 * 1024 * 1024,
    MAX_EVENTS = 256,
    MAX_DATAGRAM_BYTES = 65507,
    /* After so long a datagram counts as lost: far longer than any answer takes. */
    RESEND_MS = 200,
    /* Messages are slices of one random text, and begin at one of this many (prime)
     * places, by connection and sequence number. */
    PATTERN_STARTS = 65521,
    CONNECTION_STRIDE = 7919,
    RECEIVE_BYTES = 256 * 1024,
    /* In connect mode, loopback addresses to connect from: each has ports of its own,
     * so the closed connections that are in TIME_WAIT do not use them up. */
    SOURCE_ADDRESSES = 100,
};

struct connection {
    int fd;
    void *tls; /* SSL, or NULL */
    uint32_t id;
    uint32_t sequence;
    bool waiting;  /* a request is on its way */
    bool answered; /* at least once */
    size_t sent, received;
    uint64_t started_ns; /* or when it was due, with --rate */
    uint64_t arrival;    /* its next request's number in the schedule, with --rate */
    uint64_t resend_ns; /* when, with --udp */
    bool resent;        /* at least once: answers may come twice */
};

static struct {
    int port, connections;
    size_t message_bytes;
    double warmup_s, duration_s, stall_s;
    double rate; /* requests a second; 0: a closed loop */
    uint64_t max_requests;
    bool lines;     /* a message is a line */
    bool reconnect; /* connect mode: a new connection for every request */
    bool udp, http, hold;
    pid_t cpu_pid;
    const char *libssl;
} options = {.connections = 1,
             .message_bytes = 1024,
             .warmup_s = 0.5,
             .duration_s = 1,
             .stall_s = 5,
             .max_requests = 100 * 1000 * 1000};

static struct connection *connections;
static char *pattern;
static char receive_buffer[RECEIVE_BYTES];
static int epoll_fd;
static bool issuing = true; /* false once the window is over: answers only */
static int waiting_count, unanswered_count; /* of requests; of connections, ever */
static uint32_t connects_made;
static size_t request_bytes, reply_bytes;
static uint64_t answers; /* ever, warm-up and last ones included */

/* With --rate: when the first request was due, and the number of the next. */
static uint64_t schedule_ns, next_arrival;

/* Of the measured window, once it has begun. */
static struct latencies latencies;
static uint64_t window_start_ns = UINT64_MAX, window_end_ns = UINT64_MAX;
static uint64_t requests, resent_count;
static double window_s, server_cpu_s, load_cpu_s;

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec time;
    if (clock_gettime(clock, &time) < 0)
        die("the CPU clock of process %d cannot be read: %s", options.cpu_pid, strerror(errno));
    return (uint64_t)time.tv_sec * NS_PER_S + (uint64_t)time.tv_nsec;
}

static uint64_t now_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

/* --- the end ------------------------------------------------------------------ */

static void print_report(const char *error, bool wrong)
{
    printf("{\"requests\": %llu, \"seconds\": %.6f, \"cpu_seconds\": %.9f, "
           "\"load_cpu_seconds\": %.9f, \"latency_us\": {\"p50\": %.2f, \"p99\": %.2f, "
           "\"p999\": %.2f, \"max\": %.2f}, \"answers\": %llu, \"resent\": %llu, "
           "\"wrong\": %s, \"error\": ",
           (unsigned long long)requests, window_s, server_cpu_s, load_cpu_s,
           latency_percentile_us(&latencies, 0.5), latency_percentile_us(&latencies, 0.99),
           latency_percentile_us(&latencies, 0.999), (double)latencies.max_ns / 1e3,
           (unsigned long long)answers, (unsigned long long)resent_count,
           wrong ? "true" : "false");
    if (error)
        printf("\"%s\"}\n", error);
    else
        printf("null}\n");
    fflush(stdout);
}

__attribute__((noreturn, format(printf, 2, 3))) static void fail(bool wrong, const char *format,
                                                                 ...)
{
    char sentence[256]; /* the formats used hold nothing that JSON would escape */
    va_list args;
    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    print_report(sentence, wrong);
    exit(1);
}

static void on_alarm(int signal)
{
    (void)signal;
    static const char report[] = "{\"wrong\": false, \"error\": \"the load generator ran out of "
                                 "time: the server does not take connections\"}\n";
    ssize_t written = write(STDOUT_FILENO, report, sizeof report - 1);
    _exit(written > 0 ? 1 : 2);
}

/* --- one connection ----------------------------------------------------------- */

static ssize_t send_bytes(struct connection *conn, const char *from, size_t size)
{
    if (conn->tls)
        return tls_write(conn->tls, from, size);
    return send(conn->fd, from, size, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static ssize_t receive_bytes(struct connection *conn)
{
    if (conn->tls)
        return tls_read(conn->tls, receive_buffer, RECEIVE_BYTES);
    return recv(conn->fd, receive_buffer, RECEIVE_BYTES, MSG_DONTWAIT);
}

static const char *message_of(const struct connection *conn)
{
    if (options.http)
        return HTTP_REQUEST;
    uint64_t place = (uint64_t)conn->id * CONNECTION_STRIDE + conn->sequence;
    place %= PATTERN_STARTS;
    return pattern + (options.lines ? place - place % options.message_bytes : place);
}

static void open_connection(struct connection *conn)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    int on = 1;
    int fd = socket(AF_INET, (options.udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail(false, "socket: %s; raise the limit of open files (ulimit -n)", strerror(errno));
    if (!options.udp)
        set_nodelay(fd);
    if (options.reconnect) {
        /* The port is chosen at connect, when the destination is known. */
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        address.sin_addr.s_addr =
            htonl(INADDR_LOOPBACK + 1 + connects_made++ % SOURCE_ADDRESSES);
        if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
            fail(false, "bind to a loopback address: %s", strerror(errno));
    }
    address.sin_port = htons((uint16_t)options.port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    /* Blocking: over loopback the kernel itself answers, inside the call. */
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail(false, "connect: %s", strerror(errno));
    conn->fd = fd;
    if (options.libssl) {
        /* Blocking, too; from then on the socket does not block. */
        conn->tls = tls_connect(fd);
        if (!conn->tls || fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
            fail(false, "the TLS handshake of connection %u failed", conn->id);
    }
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = conn};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        fail(false, "epoll_ctl: %s", strerror(errno));
}

static void send_rest(struct connection *conn)
{
    /* libssl writes a record at a time, and a socket that took one may take the next. */
    do {
        ssize_t sent =
            send_bytes(conn, message_of(conn) + conn->sent, request_bytes - conn->sent);
        if (sent < 0) {
            if (errno != EAGAIN && errno != EINTR)
                fail(false, "send on connection %u: %s", conn->id, strerror(errno));
            return;
        }
        conn->sent += (size_t)sent;
    } while (conn->tls && conn->sent < request_bytes);
}

static void start_request(struct connection *conn, uint64_t due, uint64_t now)
{
    if (conn->fd < 0)
        open_connection(conn);
    conn->sequence++;
    conn->sent = conn->received = 0;
    conn->started_ns = due;
    conn->resend_ns = now + RESEND_MS * 1000000ull;
    conn->waiting = true;
    waiting_count++;
    send_rest(conn);
}

/* With --rate: when the request of this number is due. */
static uint64_t due_ns(uint64_t arrival)
{
    return schedule_ns + (uint64_t)((double)arrival * (NS_PER_S / options.rate));
}

/* With --rate: its next request, if it is time for one. */
static void start_due(struct connection *conn, uint64_t now)
{
    uint64_t due = due_ns(conn->arrival);
    if (conn->waiting || due > now || due >= window_end_ns)
        return;
    conn->arrival += (uint64_t)options.connections;
    start_request(conn, due, now);
}

static void start_all_due(uint64_t now)
{
    for (; due_ns(next_arrival) <= now; next_arrival++)
        start_due(&connections[next_arrival % (uint64_t)options.connections], now);
}

static void check_bytes(const struct connection *conn, size_t count)
{
    size_t outstanding = (options.http ? reply_bytes : conn->sent) - conn->received;
    if (!conn->waiting || count > outstanding)
        fail(true, "wrong bytes: connection %u got %zu that it did not ask for", conn->id,
             count - (conn->waiting ? outstanding : 0));
    bool right = options.http
                     ? http_matches(conn->received, receive_buffer, count)
                     : !memcmp(receive_buffer, message_of(conn) + conn->received, count);
    if (!right)
        fail(true, "wrong bytes: connection %u, request %u, in bytes %zu to %zu", conn->id,
             conn->sequence, conn->received, conn->received + count);
}

static void finish_request(struct connection *conn)
{
    uint64_t now = now_ns();
    bool scheduled = options.rate && schedule_ns;
    /* In an open loop all that was due in the window counts, however late its answer. */
    if (scheduled ? conn->started_ns >= window_start_ns : issuing)
        latency_record(&latencies, now - conn->started_ns);
    requests += issuing;
    answers++;
    conn->waiting = false;
    waiting_count--;
    if (!conn->answered) {
        conn->answered = true;
        unanswered_count--;
    }
    if (options.reconnect) {
        if (conn->tls)
            libssl.SSL_free(conn->tls);
        conn->tls = NULL;
        close(conn->fd);
        conn->fd = -1;
    }
    if (scheduled)
        start_due(conn, now);
    else if (issuing && !options.rate && !options.hold)
        start_request(conn, now, now);
}

/* One datagram. The last answer may come again if its request was sent again. */
static void receive_datagram(struct connection *conn)
{
    ssize_t count = recv(conn->fd, receive_buffer, sizeof receive_buffer, MSG_DONTWAIT);
    if (count < 0) {
        if (errno != EAGAIN && errno != EINTR)
            fail(false, "recv on connection %u: %s", conn->id, strerror(errno));
        return;
    }
    bool whole = (size_t)count == reply_bytes;
    if (whole && conn->waiting && memcmp(receive_buffer, message_of(conn), (size_t)count) == 0) {
        finish_request(conn);
        return;
    }
    struct connection before = *conn;
    before.sequence -= conn->waiting;
    if (!whole || !conn->resent
        || memcmp(receive_buffer, message_of(&before), (size_t)count) != 0)
        fail(true, "wrong datagram: connection %u, request %u, %zd bytes", conn->id,
             conn->sequence, count);
}

static void resend_lost(uint64_t now)
{
    for (int i = 0; i < options.connections; i++) {
        struct connection *conn = &connections[i];
        if (conn->waiting && now >= conn->resend_ns) {
            conn->resend_ns = now + RESEND_MS * 1000000ull;
            conn->resent = true;
            conn->sent = 0;
            resent_count++;
            send_rest(conn);
        }
    }
}

static void receive_some(struct connection *conn)
{
    for (;;) {
        ssize_t count = receive_bytes(conn);
        if (count == 0)
            fail(false, "the server closed connection %u", conn->id);
        if (count < 0) {
            if (errno == EAGAIN || errno == EINTR)
                return;
            fail(false, "recv on connection %u: %s", conn->id, strerror(errno));
        }
        check_bytes(conn, (size_t)count);
        conn->received += (size_t)count;
        if (conn->received == reply_bytes) {
            finish_request(conn);
            return;
        }
        if (!conn->tls && (size_t)count < sizeof receive_buffer)
            return; /* that was all; more makes a new edge */
    }
}

/* --- the run ------------------------------------------------------------------ */

static bool more_to_come(void)
{
    if (!issuing)
        return waiting_count > 0;
    return requests < options.max_requests || unanswered_count > 0;
}

/* Handles events until `deadline` (or until no request is out, once the window is over);
 * fails when nothing was answered for --stall seconds. */
static void run_until(uint64_t deadline)
{
    struct epoll_event events[MAX_EVENTS];
    uint64_t stall_ns = (uint64_t)(options.stall_s * 1e9);
    uint64_t progress = now_ns(), now = progress, resend = now;

    while (now < deadline && more_to_come()) {
        uint64_t left_ms = (deadline - now) / 1000000 + 1;
        int patience_ms = schedule_ns ? 0 : left_ms < 100 ? (int)left_ms : 100;
        int count = epoll_wait(epoll_fd, events, MAX_EVENTS, patience_ms);
        if (count < 0 && errno != EINTR)
            fail(false, "epoll_wait: %s", strerror(errno));
        for (int i = 0; i < count; i++) {
            struct connection *conn = events[i].data.ptr;
            if (conn->waiting && conn->sent < request_bytes)
                send_rest(conn);
            if (events[i].events & ~(uint32_t)EPOLLOUT) {
                if (options.udp)
                    receive_datagram(conn);
                else
                    receive_some(conn);
            }
        }
        now = now_ns();
        if (options.udp && now >= resend) {
            resend_lost(now);
            resend = now + RESEND_MS * 1000000ull / 4;
        }
        if (schedule_ns)
            start_all_due(now < window_end_ns ? now : window_end_ns);
        if (count > 0 || waiting_count == 0)
            progress = now;
        else if (now - progress > stall_ns)
            fail(false, "the server stopped answering: %d of %d requests got no answer for %g s",
                 waiting_count, options.connections, options.stall_s);
    }
}

/* Also until each connection has had an answer: some loops take a second to accept 1,000. */
static void warm_up(void)
{
    uint64_t start = now_ns(), last = start + (uint64_t)(options.stall_s * 1e9);
    if (!options.rate && !options.hold)
        run_until(start + (uint64_t)(options.warmup_s * 1e9));
    while (unanswered_count > 0 && now_ns() < last)
        run_until(now_ns() + NS_PER_S / 100);
    if (unanswered_count > 0)
        fail(false, "%d of %d connections got no answer for %g s", unanswered_count,
             options.connections, options.stall_s);
    if (options.rate) {
        schedule_ns = now_ns();
        run_until(schedule_ns + (uint64_t)(options.warmup_s * 1e9));
    }
}

static void hold(void)
{
    char byte;
    printf("{\"held\": %d}\n", options.connections);
    fflush(stdout);
    alarm(0); /* as long as it takes to look at the server */
    while (read(STDIN_FILENO, &byte, 1) > 0)
        continue;
}

static void measure_window(void)
{
    clockid_t server_clock = CLOCK_PROCESS_CPUTIME_ID;
    if (options.cpu_pid && clock_getcpuclockid(options.cpu_pid, &server_clock) != 0)
        fail(false, "process %d has no CPU clock", options.cpu_pid);

    memset(&latencies, 0, sizeof latencies);
    requests = resent_count = 0;
    uint64_t start = window_start_ns = now_ns();
    window_end_ns = start + (uint64_t)(options.duration_s * 1e9);
    uint64_t load_cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID), server_cpu = clock_ns(server_clock);
    run_until(window_end_ns);
    uint64_t end = now_ns();
    load_cpu_s = (double)(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - load_cpu) / 1e9;
    if (options.cpu_pid)
        server_cpu_s = (double)(clock_ns(server_clock) - server_cpu) / 1e9;
    window_s = (double)(end - start) / 1e9;
    if (requests == 0)
        fail(false, "no request was finished in %g s: take a longer --duration", window_s);

    /* A request that waits still has its say in the maximum. */
    for (int i = 0; i < options.connections; i++)
        if (connections[i].waiting && end - connections[i].started_ns > latencies.max_ns)
            latencies.max_ns = end - connections[i].started_ns;
}

/* The last answers are checked too, but not counted. */
static void drain(void)
{
    issuing = false;
    run_until(now_ns() + (uint64_t)(options.stall_s * 1e9));
    if (waiting_count > 0 && options.rate)
        fail(false, "the server could not keep up with %g requests a second", options.rate);
    if (waiting_count > 0)
        fail(false, "%d of %d requests got no answer for %g s", waiting_count,
             options.connections, options.stall_s);
}

static double number(const char *name, const char *text, double low, double high)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= low && value <= high))
        die("--%s takes a number from %g to %g, not '%s'", name, low, high, text);
    return value;
}

static void parse_options(int argc, char **argv)
{
    static const struct option names[] = {
        {"port", required_argument, NULL, 'p'},     {"connections", required_argument, NULL, 'c'},
        {"size", required_argument, NULL, 's'},     {"duration", required_argument, NULL, 'd'},
        {"warmup", required_argument, NULL, 'w'},   {"stall", required_argument, NULL, 't'},
        {"cpu-pid", required_argument, NULL, 'u'},  {"max-requests", required_argument, NULL, 'm'},
        {"reconnect", no_argument, NULL, 'r'},      {"udp", no_argument, NULL, 'g'},
        {"tls", required_argument, NULL, 'l'},      {"lines", no_argument, NULL, 'n'},
        {"rate", required_argument, NULL, 'a'},     {"http", no_argument, NULL, 'h'},
        {"hold", no_argument, NULL, 'o'},
        {0},
    };
    int code, index = 0;
    while ((code = getopt_long(argc, argv, "", names, &index)) != -1) {
        const char *name = names[index].name;
        switch (code) {
        case 'p': options.port = (int)number(name, optarg, 1, 65535); break;
        case 'c': options.connections = (int)number(name, optarg, 1, MAX_CONNECTIONS); break;
        case 's': options.message_bytes = (size_t)number(name, optarg, 1, MAX_MESSAGE_BYTES); break;
        case 'd': options.duration_s = number(name, optarg, 0.01, 600); break;
        case 'w': options.warmup_s = number(name, optarg, 0, 60); break;
        case 't': options.stall_s = number(name, optarg, 0.1, 60); break;
        case 'u': options.cpu_pid = (pid_t)number(name, optarg, 1, INT32_MAX); break;
        case 'm': options.max_requests = (uint64_t)number(name, optarg, 1, 1e12); break;
        case 'r': options.reconnect = true; break;
        case 'g': options.udp = true; break;
        case 'l': options.libssl = optarg; break;
        case 'n': options.lines = true; break;
        case 'a': options.rate = number(name, optarg, 1, 1e7); break;
        case 'h': options.http = true; break;
        case 'o': options.hold = true; break;
        default: exit(2); /* getopt has said what is wrong */
        }
    }
    if (!options.port || optind != argc)
        die("usage: load --port PORT [--connections N] [--size BYTES] [--duration S] [--warmup S] "
            "[--stall S] [--max-requests N] [--reconnect | --udp | --tls LIBSSL] "
            "[--lines | --http] [--rate R | --hold] [--cpu-pid PID]");
    if (options.udp && options.message_bytes > MAX_DATAGRAM_BYTES)
        die("a datagram has at most %d bytes", MAX_DATAGRAM_BYTES);
}

static void make_pattern(void)
{
    size_t length = PATTERN_STARTS + options.message_bytes;
    uint64_t state = 88172645463325252ull; /* xorshift64 */
    pattern = allocate(length, 1);
    for (size_t i = 0; i < length; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        pattern[i] = (char)(state >> 32);
        if (options.lines)
            pattern[i] = (i + 1) % options.message_bytes ? pattern[i] | 0x20 : '\n';
    }
}

int main(int argc, char **argv)
{
    parse_options(argc, argv);
    make_pattern();
    if (options.libssl)
        tls_load(options.libssl);
    request_bytes = reply_bytes = options.message_bytes;
    if (options.http) {
        request_bytes = strlen(HTTP_REQUEST);
        reply_bytes = http_learn(options.port, options.message_bytes, options.stall_s);
    }
    double longest_s = options.warmup_s + options.duration_s + 3 * options.stall_s;
    signal(SIGALRM, on_alarm);
    alarm((unsigned)longest_s + 2);

    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        die("epoll_create1: %s", strerror(errno));
    connections = allocate((size_t)options.connections, sizeof *connections);
    for (int i = 0; i < options.connections; i++) {
        connections[i].id = (uint32_t)i;
        connections[i].fd = -1;
        connections[i].arrival = (uint64_t)i;
    }
    unanswered_count = options.connections;
    for (int i = 0; i < options.connections; i++) {
        uint64_t now = now_ns();
        start_request(&connections[i], now, now);
    }

    warm_up();
    if (options.hold) {
        hold();
        return 0;
    }
    measure_window();
    drain();
    print_report(NULL, false);
    return 0;
}
