/* Load generator: drives a server over TCP from one thread, checks every byte that comes back, and measures.
 *
 * Modes
 *   echo       messages of --size bytes, --depth of them outstanding on each connection
 *   line       newline-terminated messages; --depth of them in one write, and when all are back, the next ones. With
 *              --request and --reply each line sent is the one text, and each that comes back must be the other
 *   frame      the same with messages of --size bytes behind their length: 4 bytes, in network order
 *   broadcast  such messages, which the server sends to every connection, the sender's too. One connection sends
 *              --depth of them in one write; when all connections have all of them, the next connection does. What is
 *              counted is deliveries
 *   connect    connect, one message, its echo, close; --connections of these cycles in flight
 *   idle       open the connections, have one message echoed on each, print "connected N", and hold them until the
 *              standard input ends; nothing is measured
 *
 * Latency
 *   Closed loop (--rate 0): from the send to the last byte of the reply, a figure a message (line, frame: a batch;
 *   broadcast: a batch, until the last connection has it; connect: a cycle, from connect on). Open loop: messages are
 *   due on a fixed schedule, dealt to the connections in turn, and latency counts from the moment a message was due,
 *   whether or not it could be sent then. A server that stalls is so charged for every message it held up; a closed
 *   loop would leave those out (coordinated omission).
 *
 * What is checked
 *   All connections send the same long pseudo-random stream, each from a point of its own, so that a byte lost,
 *   doubled, changed, or sent to the wrong connection shows. (In a broadcast all expect the same stream, from its
 *   beginning; lines of --request are all alike.) After the measured time nothing new is sent, and all that is on its
 *   way must come back.
 *
 * TLS
 *   Compiled with -DWITH_TLS (and -lssl -lcrypto) it speaks TLS 1.3 on every connection, each with a full handshake,
 *   and checks no certificate. What is timed and counted is the same; in connect mode the handshake is part of the
 *   cycle.
 *
 * Exit status: 0; 1 something failed (counted by kind in "errors"); 2 usage; 3 a reply was wrong; 4 out of time.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

#define SECOND 1000000000ull /* everything here counts in nanoseconds */

enum {
    EVENTS = 1024,
    INPUT_SIZE = 256 * 1024,
    RAMP_AT_ONCE = 64,   /* connections on their way to being served: fits a backlog of 100 */
    RAMP_LIMIT_S = 30,   /* for all of them */
    DRAIN_LIMIT_S = 10,  /* for the last replies */
    SENDS_PER_POLL = 64, /* open loop: reading must not starve while the schedule is caught up with */
    SOURCES = 200,       /* local addresses the connect mode spreads over, so that ports last */
    HEADER = 4,          /* of a frame */
    PROBE_SIZE = HEADER + 8,
    PROBE_PATIENCE_MS = 100,
};

enum mode { ECHO, LINE, FRAME, BROADCAST, CONNECT, IDLE, MODES };
static const char *const mode_names[] = {"echo", "line", "frame", "broadcast", "connect", "idle"};

static struct {
    const char *host, *request, *reply;
    long port, connections, size, depth, cpu, pid;
    double duration, warmup, rate;
    enum mode mode;
    bool json;
} options = {
    .host = "127.0.0.1", .connections = 100, .size = 64, .depth = 1, .cpu = -1, .duration = 3.0, .warmup = 0.5,
};

enum error { REFUSED, TIMED_OUT, CONNECT_FAILED, RESET, CLOSED, IO_FAILED, UNANSWERED, ERROR_KINDS };
static const char *const error_names[] = {
    "refused", "timed_out", "connect_failed", "reset", "closed", "io_failed", "unanswered",
};
static uint64_t errors[ERROR_KINDS];

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static void die(const char *what) {
    fprintf(stderr, "loadgen: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void wrong_reply(const char *what, uint64_t at) {
    fprintf(stderr, "loadgen: WRONG REPLY: %s, byte %llu of its connection\n", what, (unsigned long long)at);
    exit(3);
}

/* --- histogram: log-linear, 128 steps an octave, so within 0.4 % of the truth; 1 ns to 68 s --- */

enum { STEP_BITS = 7, STEPS = 1 << STEP_BITS, TOP_BITS = 36, BUCKETS = (TOP_BITS - STEP_BITS + 1) * STEPS };
static struct {
    uint64_t buckets[BUCKETS], count, max;
} latencies;

static void record(uint64_t ns) {
    uint64_t v = ns >> TOP_BITS ? (1ull << TOP_BITS) - 1 : ns;
    int shift = v < STEPS ? 0 : 63 - __builtin_clzll(v) - STEP_BITS;
    latencies.buckets[((uint64_t)shift << STEP_BITS) + (v >> shift)]++;
    latencies.count++;
    if (ns > latencies.max) latencies.max = ns;
}

static double percentile_us(double percent) {
    double rank = percent / 100.0 * (double)latencies.count;
    uint64_t seen = 0;
    for (int i = 0; i < BUCKETS && latencies.count; i++) {
        seen += latencies.buckets[i];
        if (seen == 0 || (double)seen < rank) continue;
        int shift = i < 2 * STEPS ? 0 : i / STEPS - 1;
        uint64_t low = (uint64_t)(i - shift * STEPS) << shift, middle = low + ((1ull << shift) - 1) / 2;
        return (double)(middle < latencies.max ? middle : latencies.max) / 1e3;
    }
    return 0.0;
}

/* --- the stream --- */

struct stream {
    uint64_t message; /* bytes, with newline or header */
    uint64_t period;  /* bytes, a whole number of messages */
    char *bytes;      /* `period` of them, and the beginning once more, so that a batch never wraps */
};

static struct stream sending, expected; /* the same, unless there is a --reply */
static uint64_t messages_in_period;
static uint64_t unit_messages; /* messages that are timed as one: one, or a batch */
static uint64_t unit;          /* their bytes, in what is sent */

static char random_byte(void) {
    static uint64_t x = 88172645463325252ull; /* xorshift64 */
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return (char)(x >> 32);
}

static void fill_message(char *bytes, const char *text) {
    uint64_t size = (uint64_t)options.size;
    uint32_t length = htonl((uint32_t)size);
    switch (options.mode) {
    case LINE:
        if (text) size = (uint64_t)(stpcpy(bytes, text) - bytes) + 1;
        /* within a line there must be no newline */
        for (uint64_t i = 0; !text && i < size - 1; i++) bytes[i] = (char)('!' + (unsigned char)random_byte() % 94);
        bytes[size - 1] = '\n';
        break;
    case FRAME:
    case BROADCAST:
        memcpy(bytes, &length, HEADER);
        bytes += HEADER;
        /* fall through */
    default:
        for (uint64_t i = 0; i < size; i++) bytes[i] = random_byte();
    }
}

static struct stream new_stream(uint64_t message, const char *text) {
    struct stream s = {.message = message, .period = message * messages_in_period};
    uint64_t total = s.period + message * (uint64_t)options.depth;
    s.bytes = malloc(total);
    if (!s.bytes) die("memory for the stream");
    for (uint64_t i = 0; i < s.period; i += message) fill_message(s.bytes + i, text);
    for (uint64_t i = s.period; i < total; i++) s.bytes[i] = s.bytes[i - s.period];
    return s;
}

static void make_streams(void) {
    bool is_framed = options.mode == FRAME || options.mode == BROADCAST;
    uint64_t message = (uint64_t)options.size + (is_framed ? HEADER : 0);
    messages_in_period = (1u << 20) / message + 3;
    expected = sending = new_stream(message, options.request);
    if (options.reply) expected = new_stream(strlen(options.reply) + 1, options.reply);
    unit_messages = is_framed || options.mode == LINE ? (uint64_t)options.depth : 1;
    unit = message * unit_messages;
}

/* How many bytes may be back when `sent` are sent. An echo of half a message is half an echo; a reply is not. */
static uint64_t answer_to(uint64_t sent) {
    return options.reply ? sent / sending.message * expected.message : sent;
}

/* --- connections --- */

enum state { UNUSED, CONNECTING, SHAKING, PROBING, UP, DEAD };

struct connection {
    int fd;
#ifdef WITH_TLS
    SSL *tls;
#endif
    enum state state;
    bool is_blocked;         /* the socket takes no more for now: EPOLLOUT will tell */
    bool is_watched_for_out; /* EPOLLOUT is asked for */
    uint64_t base;           /* in which message of the streams it began */
    uint64_t target;         /* bytes that it has been told to send */
    uint64_t sent, received; /* bytes */
    uint64_t probed;         /* 1 if the first message only shows that the server serves us */
    uint64_t probe;          /* broadcast: the number of the last probe that it got; 0: none */
    char partial[PROBE_SIZE];
    uint64_t *sent_at;       /* closed loop: a ring, when each outstanding unit was sent */
    uint64_t due;            /* connect mode: when the cycle was due */
};

static struct connection *connections;
static uint64_t ring; /* units a connection may have outstanding in a closed loop */
static int epoll_fd;
static struct sockaddr_storage server;
static socklen_t server_size;
static long served, dead;
static long begun; /* connect mode, closed loop: connections that have had a first cycle */

static bool is_measuring, is_draining;
static uint64_t counted;                   /* messages that came back in the measured time */
static uint64_t unsent;                    /* open loop: messages that were due, but could not be sent in time */
static uint64_t schedule_start, scheduled; /* open loop: unit k is due at start + k × unit_messages / rate */

static uint64_t due_time(uint64_t k) {
    return schedule_start + (uint64_t)((double)k * (double)unit_messages * 1e9 / options.rate);
}

/* Units of which all is sent, or the replies to all are received; without the probe. */
static uint64_t units_in(const struct stream *s, uint64_t bytes, uint64_t probed) {
    uint64_t messages = bytes / s->message;
    return messages < probed ? 0 : (messages - probed) / unit_messages;
}

static void watch(struct connection *c, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll_fd, operation, c->fd, &event) < 0) die("epoll_ctl");
}

/* --- bytes in and out, in TLS or as they are; as send and recv have it, with errno --- */

#ifdef WITH_TLS

static SSL_CTX *context;

static void begin_tls(struct connection *c) {
    if (!context) {
        context = SSL_CTX_new(TLS_client_method());
        if (!context || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION)) die("SSL_CTX_new");
        SSL_CTX_set_read_ahead(context, 1); /* or it would read each record in two parts */
        SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    }
    c->tls = SSL_new(context);
    if (!c->tls || !SSL_set_fd(c->tls, c->fd)) die("SSL_new");
    SSL_set_connect_state(c->tls);
}

/* What an operation that has not succeeded means: 0 is the end of the stream, -1 an errno. */
static ssize_t tls_outcome(struct connection *c, int result) {
    int error = SSL_get_error(c->tls, result);
    int number = errno;
    ERR_clear_error();
    if (error == SSL_ERROR_ZERO_RETURN) return 0;
    /* EPROTO: not TLS, or a stream without its proper end. */
    errno = error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? EAGAIN
            : error == SSL_ERROR_SYSCALL && number                        ? number
                                                                          : EPROTO;
    return -1;
}

static ssize_t give(struct connection *c, const void *bytes, size_t n) {
    errno = 0;
    int done = SSL_write(c->tls, bytes, (int)n);
    return done > 0 ? done : tls_outcome(c, done);
}

/* One record: where `n` bytes are more than that, only whole ones stay in OpenSSL, and has_more() tells of them. */
static ssize_t take(struct connection *c, void *bytes, size_t n) {
    errno = 0;
    int done = SSL_read(c->tls, bytes, (int)n);
    return done > 0 ? done : tls_outcome(c, done);
}

/* Something that has been read ahead, of which epoll does not know: a record, or a part of one. */
static bool has_more(const struct connection *c) { return c->tls && SSL_has_pending(c->tls); }

static void hang_up(struct connection *c) {
    if (c->tls) {
        if (c->state == UP) SSL_shutdown(c->tls);
        SSL_free(c->tls);
        c->tls = NULL;
        ERR_clear_error();
    }
    close(c->fd);
}

#else

static ssize_t give(struct connection *c, const void *bytes, size_t n) { return send(c->fd, bytes, n, MSG_NOSIGNAL); }
static ssize_t take(struct connection *c, void *bytes, size_t n) { return recv(c->fd, bytes, n, 0); }
static bool has_more(const struct connection *c) { return (void)c, false; }
static void hang_up(struct connection *c) { close(c->fd); }

#endif

static void fail(struct connection *c, enum error kind) {
    errors[kind]++;
    hang_up(c);
    c->state = DEAD;
    dead++;
}

static void fail_errno(struct connection *c, int error) {
    enum error kind = c->state == CONNECTING || c->state == SHAKING ? CONNECT_FAILED : IO_FAILED;
    if (error == ECONNREFUSED) kind = REFUSED;
    else if (error == ETIMEDOUT) kind = TIMED_OUT;
    else if (error == ECONNRESET || error == EPIPE) kind = RESET;
    fail(c, kind);
}

static void open_connection(struct connection *c, uint64_t due) {
    static unsigned turn;
    int on = 1;
    c->fd = socket(server.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    const struct sockaddr_in *to = (const struct sockaddr_in *)&server;
    if (options.mode == CONNECT && server.ss_family == AF_INET && ntohl(to->sin_addr.s_addr) >> 24 == 127) {
        /* Closed in good order, a connection holds its port for a minute; all of 127/8 is this machine. */
        struct sockaddr_in from = {.sin_family = AF_INET};
        from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + turn++ % SOURCES);
        setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        if (bind(c->fd, (struct sockaddr *)&from, sizeof from) < 0) die("bind");
    }
    c->state = CONNECTING;
    c->is_blocked = c->is_watched_for_out = false;
    c->base = options.mode == BROADCAST ? 0 : (uint64_t)(c - connections) * 7919 % messages_in_period;
    c->target = c->sent = c->received = c->probed = c->probe = 0;
    c->due = due;
    if (connect(c->fd, (struct sockaddr *)&server, server_size) < 0 && errno != EINPROGRESS) {
        fail_errno(c, errno);
        return;
    }
    watch(c, EPOLL_CTL_ADD, EPOLLOUT);
}

/* Send what the connection has been told to send: one write, unless more than `depth` messages are waiting. */
static void pump(struct connection *c) {
    uint64_t most = sending.message * (uint64_t)options.depth;
    while (!c->is_blocked && c->sent < c->target) {
        uint64_t n = c->target - c->sent < most ? c->target - c->sent : most;
        uint64_t at = (c->base * sending.message + c->sent) % sending.period;
        ssize_t done = give(c, sending.bytes + at, n);
        if (done > 0) {
            c->sent += (uint64_t)done;
        } else if (errno == EAGAIN) {
            c->is_blocked = true;
        } else if (errno != EINTR) {
            fail_errno(c, errno);
            return;
        }
    }
    if (c->is_blocked == c->is_watched_for_out) return;
    c->is_watched_for_out = c->is_blocked;
    watch(c, EPOLL_CTL_MOD, c->is_blocked ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

/* Closed loop: tell the connection to send `units` more, now. */
static void send_units(struct connection *c, uint64_t units) {
    uint64_t now = now_ns();
    for (uint64_t i = 0; i < units; i++) {
        c->sent_at[units_in(&sending, c->target, c->probed) % ring] = now;
        c->target += unit;
    }
    pump(c);
}

static void note_reply(uint64_t since, uint64_t now) {
    if (!is_measuring) return;
    record(now > since ? now - since : 0);
    if (!is_draining) counted += unit_messages;
}

static void check_bytes(const struct connection *c, const char *input, uint64_t n) {
    for (uint64_t done = 0; done < n;) {
        uint64_t at = (c->base * expected.message + c->received + done) % expected.period, m = expected.period - at;
        if (m > n - done) m = n - done;
        if (memcmp(input + done, expected.bytes + at, m) != 0) {
            while (input[done] == expected.bytes[at]) done++, at++;
            wrong_reply("a byte is not the one expected", c->received + done);
        }
        done += m;
    }
}

static void end_cycle(struct connection *c, uint64_t now) {
    note_reply(c->due, now);
    hang_up(c);
    c->state = UNUSED;
    if (is_draining || options.rate > 0) return;
    open_connection(c, now_ns());
    if (begun < options.connections) open_connection(&connections[begun++], now_ns());
}

/* --- broadcast: all connections expect the same stream, and they take turns in sending it --- */

static struct {
    uint64_t told;         /* bytes of the stream that have been sent, or are being sent */
    uint64_t sent_at;      /* when the last batch was */
    uint64_t batches;      /* so far */
    long behind;           /* connections that do not have all of it yet */
    uint64_t probe;        /* the number of the last probe */
    long reached, at_last; /* connections that have got any probe, and the last one */
} hub;

static void broadcast_next(void) {
    struct connection *sender = &connections[hub.batches++ % (uint64_t)options.connections];
    sender->sent = hub.told;
    sender->target = hub.told += unit;
    hub.behind = options.connections;
    hub.sent_at = now_ns();
    pump(sender);
}

static void take_broadcast(struct connection *c, const char *input, uint64_t n) {
    if (c->received + n > hub.told) wrong_reply("more came than was sent", hub.told);
    check_bytes(c, input, n);
    uint64_t first = c->received / expected.message;
    c->received += n;
    if (is_measuring && !is_draining) counted += c->received / expected.message - first;
    if (c->received < hub.told || --hub.behind > 0) return;
    uint64_t now = now_ns();
    if (is_measuring) record(now - hub.sent_at);
    if (!is_draining) broadcast_next();
}

static void send_probe(struct connection *c) {
    uint64_t number = htobe64(++hub.probe);
    uint32_t length = htonl(sizeof number);
    char bytes[PROBE_SIZE];
    memcpy(bytes, &length, HEADER);
    memcpy(bytes + HEADER, &number, sizeof number);
    hub.at_last = 0;
    if (give(c, bytes, sizeof bytes) != sizeof bytes) fail_errno(c, errno);
}

static void take_probes(struct connection *c, const char *input, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) {
        c->partial[c->received++ % PROBE_SIZE] = input[i];
        if (c->received % PROBE_SIZE != 0) continue;
        uint32_t length;
        uint64_t number;
        memcpy(&length, c->partial, HEADER);
        memcpy(&number, c->partial + HEADER, sizeof number);
        number = be64toh(number);
        /* whoever is in is told everything from then on */
        if (ntohl(length) != sizeof number || number == 0 || number > hub.probe || (c->probe && number != c->probe + 1))
            wrong_reply("a probe is not the one expected", c->received - PROBE_SIZE);
        if (c->probe == 0) hub.reached++;
        if (number == hub.probe) hub.at_last++;
        c->probe = number;
    }
}

static void handle_reply(struct connection *c, const char *input, uint64_t n) {
    if (options.mode == BROADCAST) {
        (c->state == PROBING ? take_probes : take_broadcast)(c, input, n);
        return;
    }
    if (c->received + n > answer_to(c->sent)) wrong_reply("more came back than was sent", answer_to(c->sent));
    check_bytes(c, input, n);
    if (c->state == PROBING) {
        c->received += n;
        if (c->received == expected.message) {
            c->state = UP;
            served++;
        }
        return;
    }
    uint64_t first = units_in(&expected, c->received, c->probed);
    c->received += n;
    uint64_t next = units_in(&expected, c->received, c->probed);
    if (first == next) return;
    uint64_t now = now_ns();
    if (options.mode == CONNECT) {
        end_cycle(c, now);
    } else if (options.rate > 0) {
        uint64_t index = (uint64_t)(c - connections);
        for (uint64_t i = first; i < next; i++) note_reply(due_time(i * (uint64_t)options.connections + index), now);
    } else {
        for (uint64_t i = first; i < next; i++) note_reply(c->sent_at[i % ring], now);
        if (!is_draining) send_units(c, next - first);
    }
}

static void handle_replies(struct connection *c) {
    static char input[INPUT_SIZE];
    do {
        ssize_t n = take(c, input, sizeof input);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (n > 0) handle_reply(c, input, (uint64_t)n);
        else if (n == 0) fail(c, CLOSED);
        else fail_errno(c, errno);
    } while (has_more(c)); /* not of one that has ended: it is not TLS any more, or not yet again */
}

static void begin_probing(struct connection *c) {
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
    c->probed = options.mode == CONNECT ? 0 : 1;
    c->state = options.mode == CONNECT ? UP : PROBING;
    if (options.mode == BROADCAST) return; /* all together, when everybody is connected */
    c->target = sending.message;
    pump(c);
}

#ifdef WITH_TLS
static void shake_hands(struct connection *c) {
    errno = 0;
    int done = SSL_do_handshake(c->tls);
    if (done == 1) {
        begin_probing(c);
    } else {
        int wanted = SSL_want(c->tls);
        if (tls_outcome(c, done) == 0) errno = EPROTO;
        if (errno != EAGAIN) fail_errno(c, errno);
        else watch(c, EPOLL_CTL_MOD, wanted == SSL_WRITING ? EPOLLOUT : EPOLLIN);
    }
}
#endif

static void handle_connected(struct connection *c) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        fail_errno(c, error);
        return;
    }
#ifdef WITH_TLS
    begin_tls(c);
    c->state = SHAKING;
    shake_hands(c);
#else
    begin_probing(c);
#endif
}

static void poll_once(int timeout_ms) {
    static struct epoll_event events[EVENTS];
    int count = epoll_wait(epoll_fd, events, EVENTS, timeout_ms);
    if (count < 0 && errno != EINTR) die("epoll_wait");
    for (int i = 0; i < count; i++) {
        struct connection *c = events[i].data.ptr;
        if (c->state == CONNECTING) {
            handle_connected(c);
            continue;
        }
#ifdef WITH_TLS
        if (c->state == SHAKING) {
            shake_hands(c);
            continue;
        }
#endif
        if (events[i].events & EPOLLOUT) {
            c->is_blocked = false;
            pump(c);
        }
        if (c->state != DEAD && events[i].events & ~(uint32_t)EPOLLOUT) handle_replies(c);
    }
}

/* --- a run: ramp up, warm up, measure, drain --- */

static void give_up(void) {
    fprintf(stderr, "loadgen: %ld of %ld connections were served:", served, options.connections);
    for (int kind = 0; kind < ERROR_KINDS; kind++)
        if (errors[kind]) fprintf(stderr, " %s %llu", error_names[kind], (unsigned long long)errors[kind]);
    fprintf(stderr, "\n");
    exit(1);
}

/* A connection counts once its first message came back: connected is not yet accepted, and only replies show that
 * the backlog is being emptied. */
static void ramp_up(void) {
    uint64_t deadline = now_ns() + RAMP_LIMIT_S * SECOND;
    long opened = 0;
    while (served + dead < options.connections && now_ns() < deadline) {
        while (opened < options.connections && opened - served - dead < RAMP_AT_ONCE)
            open_connection(&connections[opened++], 0);
        poll_once(100);
    }
    for (long i = 0; i < opened; i++)
        if (connections[i].state >= CONNECTING && connections[i].state <= PROBING) fail(&connections[i], TIMED_OUT);
    if (served == 0) give_up();
}

static void connect_all(uint64_t deadline) {
    long opened = 0, connecting = 0;
    while ((opened < options.connections || connecting > 0) && dead == 0 && now_ns() < deadline) {
        while (opened < options.connections && connecting < RAMP_AT_ONCE) {
            open_connection(&connections[opened++], 0);
            connecting++;
        }
        poll_once(100);
        connecting = 0;
        for (long i = 0; i < opened; i++) connecting += connections[i].state < PROBING;
    }
    for (long i = 0; i < opened && dead == 0; i++)
        if (connections[i].state < PROBING) fail(&connections[i], TIMED_OUT);
}

/* Broadcast: connected is not yet a member. The last connection sends probes until one of them has reached everybody;
 * as each is told everything from the first probe that it gets, all are then at the same place. */
static void ramp_up_members(void) {
    uint64_t deadline = now_ns() + RAMP_LIMIT_S * SECOND, next_probe = 0;
    connect_all(deadline);
    while (dead == 0 && hub.at_last < options.connections && now_ns() < deadline) {
        if (hub.reached < options.connections && now_ns() >= next_probe) {
            send_probe(&connections[options.connections - 1]);
            next_probe = now_ns() + PROBE_PATIENCE_MS * (SECOND / 1000);
        }
        poll_once(PROBE_PATIENCE_MS);
    }
    if (dead > 0) give_up();
    for (long i = 0; i < options.connections; i++) {
        struct connection *c = &connections[i];
        if (c->probe != hub.probe) {
            fail(c, TIMED_OUT);
            continue;
        }
        c->state = UP;
        c->received = 0;
        served++;
    }
    if (dead > 0) give_up();
}

/* Hold the connections until nobody wants them any more. */
static void hold(void) {
    char ignored[64];
    if (served < options.connections) give_up();
    printf("connected %ld\n", served);
    fflush(stdout);
    alarm(0);
    while (read(STDIN_FILENO, ignored, sizeof ignored) > 0) continue;
}

/* Open loop: hand out what is due; returns how long the next wait may be, in ms (0: spin, the gap is too short). */
static int follow_schedule(uint64_t now) {
    static long free_slot;
    for (int i = 0; i < SENDS_PER_POLL; i++) {
        uint64_t due = due_time(scheduled);
        if (due > now) return due - now > 2 * SECOND / 1000 ? 1 : 0;
        if (options.mode != CONNECT) {
            struct connection *c = &connections[scheduled++ % (uint64_t)options.connections];
            c->target += unit;
            if (c->state == UP) pump(c);
            continue;
        }
        long tried = 0;
        while (tried < options.connections && connections[free_slot].state != UNUSED) {
            free_slot = (free_slot + 1) % options.connections;
            tried++;
        }
        if (tried == options.connections) return 1; /* all in use: the cycle waits, and its latency counts */
        open_connection(&connections[free_slot], due);
        scheduled++;
    }
    return 0;
}

static void run_until(uint64_t end) {
    long most_dead = options.mode == BROADCAST ? 0 : options.connections - 1; /* a batch must reach everybody */
    for (uint64_t now = now_ns(); now < end && dead <= most_dead; now = now_ns()) {
        int timeout_ms = options.rate > 0 ? follow_schedule(now) : 100;
        int left_ms = (int)((end - now) / 1000000) + 1;
        poll_once(timeout_ms < left_ms ? timeout_ms : left_ms);
    }
}

static void start_load(void) {
    schedule_start = now_ns();
    if (options.rate > 0) return;
    if (options.mode == CONNECT) { /* each cycle that ends starts one more, until all are in flight */
        while (begun < options.connections && begun < RAMP_AT_ONCE) open_connection(&connections[begun++], now_ns());
        return;
    }
    if (options.mode == BROADCAST) {
        broadcast_next();
        return;
    }
    for (long i = 0; i < options.connections; i++)
        if (connections[i].state == UP) send_units(&connections[i], ring);
}

/* How many bytes have yet to come. */
static uint64_t owed_to(const struct connection *c) {
    if (options.mode == CONNECT) return c->state >= CONNECTING && c->state <= UP ? unit : 0;
    if (c->state != UP) return 0;
    return (options.mode == BROADCAST ? hub.told : answer_to(c->target)) - c->received;
}

/* Open loop: withdraw what was handed out but not sent, and count it, and its latency as the time it has waited. */
static void withdraw_unsent(uint64_t end) {
    for (long i = 0; i < options.connections && options.mode != CONNECT; i++) {
        struct connection *c = &connections[i];
        uint64_t started = units_in(&sending, c->sent + unit - 1, c->probed);
        uint64_t told = units_in(&sending, c->target, c->probed);
        for (uint64_t k = started; k < told; k++, unsent += unit_messages) {
            uint64_t due = due_time(k * (uint64_t)options.connections + (uint64_t)i);
            record(end > due ? end - due : 0);
        }
        c->target = c->probed * sending.message + started * unit;
    }
    /* Due but not handed out: the generator, or in connect mode the free connections, did not keep up. */
    for (; due_time(scheduled) < end; scheduled++, unsent += unit_messages) record(end - due_time(scheduled));
}

/* Send nothing new, and wait for all that is on its way. */
static void drain(uint64_t end) {
    is_draining = true;
    if (options.rate > 0) withdraw_unsent(end);
    uint64_t deadline = now_ns() + DRAIN_LIMIT_S * SECOND;
    long owed = 1;
    while (owed && now_ns() < deadline) {
        owed = 0;
        for (long i = 0; i < options.connections; i++) owed += owed_to(&connections[i]) > 0;
        if (owed) poll_once(20);
    }
    for (long i = 0; i < options.connections && owed; i++) {
        const struct connection *c = &connections[i];
        uint64_t bytes = owed_to(c);
        if (bytes > 0 && c->received % expected.message != 0)
            wrong_reply("the rest of a message is missing", c->received);
        errors[UNANSWERED] += (bytes + expected.message - 1) / expected.message;
    }
}

/* --- processor time of the server and of this program, in seconds --- */

struct usage {
    double total, user, system; /* the server's */
    double own;
    double waited, own_waited; /* ready to run, but another program had the processor */
};

static double seconds_of(struct timeval t) { return (double)t.tv_sec + (double)t.tv_usec / 1e6; }

/* Of all threads of a process together; 0 where the kernel does not count it. */
static double seconds_waited(const char *process) {
    char path[PATH_MAX];
    unsigned long long ran, waited, sum = 0;
    snprintf(path, sizeof path, "/proc/%s/task", process);
    DIR *threads = opendir(path);
    if (!threads) return 0.0;
    for (const struct dirent *thread; (thread = readdir(threads));) {
        snprintf(path, sizeof path, "/proc/%s/task/%s/schedstat", process, thread->d_name);
        FILE *f = thread->d_name[0] == '.' ? NULL : fopen(path, "r");
        if (!f) continue; /* or it has just ended */
        if (fscanf(f, "%llu %llu", &ran, &waited) == 2) sum += waited;
        fclose(f);
    }
    closedir(threads);
    return (double)sum / 1e9;
}

/* The server's, all its threads: exact in sum; user and system as /proc/PID/stat splits it, in ticks of 10 ms. */
static void read_server_usage(struct usage *u) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%ld/stat", options.pid);
    FILE *f = fopen(path, "r");
    if (!f) die(path);
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    static const char fields[] = " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu";
    unsigned long long user, system;
    const char *after_name = strrchr(text, ')'); /* the name may hold anything */
    if (!after_name || sscanf(after_name + 1, fields, &user, &system) != 2) {
        fprintf(stderr, "loadgen: %s is not understood\n", path);
        exit(1);
    }
    u->user = (double)user / (double)sysconf(_SC_CLK_TCK);
    u->system = (double)system / (double)sysconf(_SC_CLK_TCK);
    clockid_t server_clock;
    struct timespec total;
    errno = clock_getcpuclockid((pid_t)options.pid, &server_clock);
    if (errno || clock_gettime(server_clock, &total) < 0) die("the server's processor time");
    u->total = (double)total.tv_sec + (double)total.tv_nsec / 1e9;
    snprintf(path, sizeof path, "%ld", options.pid);
    u->waited = seconds_waited(path);
}

static struct usage usage_now(void) {
    struct usage u = {0};
    struct rusage own;
    getrusage(RUSAGE_SELF, &own);
    u.own = seconds_of(own.ru_utime) + seconds_of(own.ru_stime);
    u.own_waited = seconds_waited("self");
    if (options.pid) read_server_usage(&u);
    return u;
}

static struct usage usage_between(const struct usage *before, const struct usage *after) {
    struct usage u = {
        .total = after->total - before->total,
        .own = after->own - before->own,
        .waited = after->waited - before->waited,
        .own_waited = after->own_waited - before->own_waited,
    };
    double user = after->user - before->user, ticked = user + after->system - before->system;
    if (ticked <= 0) { /* less than a tick: the split of its whole life will do */
        user = after->user;
        ticked = after->user + after->system;
    }
    u.user = ticked > 0 ? u.total * user / ticked : 0;
    u.system = u.total > u.user ? u.total - u.user : 0;
    return u;
}

/* --- the report --- */

static const double percents[] = {50, 90, 99, 99.9};
enum { PERCENTS = sizeof percents / sizeof *percents };

static void print_json(double seconds, struct usage used) {
    double bytes = (double)counted * (double)options.size;
    printf("{\"mode\": \"%s\", \"messages\": %llu, \"bytes\": %.0f, \"seconds\": %.6f, ", mode_names[options.mode],
           (unsigned long long)counted, bytes, seconds);
    printf("\"messages_per_s\": %.1f, \"mib_per_s\": %.3f, \"connections\": %ld, \"unsent\": %llu, ",
           (double)counted / seconds, bytes / seconds / 1048576.0,
           options.mode == CONNECT ? options.connections : served, (unsigned long long)unsent);
    printf("\"latency_us\": {");
    for (int i = 0; i < PERCENTS; i++) printf("\"p%g\": %.2f, ", percents[i], percentile_us(percents[i]));
    printf("\"max\": %.2f}, \"generator_busy\": %.3f, \"generator_waited\": %.3f, ", (double)latencies.max / 1e3,
           used.own / seconds, used.own_waited / seconds);
    if (options.pid)
        printf("\"server_user_s\": %.6f, \"server_system_s\": %.6f, \"server_waited\": %.3f, ", used.user, used.system,
               used.waited / seconds);
    printf("\"errors\": {");
    for (int kind = 0; kind < ERROR_KINDS; kind++)
        printf("%s\"%s\": %llu", kind ? ", " : "", error_names[kind], (unsigned long long)errors[kind]);
    printf("}}\n");
}

static void print_text(double seconds, struct usage used) {
    double rate = (double)counted / seconds;
    printf("%s, %ld connections, %ld B, depth %ld, %.1f s\n", mode_names[options.mode], options.connections,
           options.size, options.depth, seconds);
    printf("  throughput   %.0f messages/s, %.1f MiB/s\n", rate, rate * (double)options.size / 1048576.0);
    printf("  latency µs  ");
    for (int i = 0; i < PERCENTS; i++) printf(" p%g %.1f ", percents[i], percentile_us(percents[i]));
    printf(" max %.1f\n", (double)latencies.max / 1e3);
    printf("  generator    busy %.0f %% of the time, kept waiting for its processor %.0f %%\n",
           used.own / seconds * 100, used.own_waited / seconds * 100);
    if (options.pid && counted)
        printf("  server       %.2f µs user, %.2f µs system a message, kept waiting %.0f %% of the time\n",
               used.user / (double)counted * 1e6, used.system / (double)counted * 1e6, used.waited / seconds * 100);
    if (unsent) printf("  BEHIND       %llu messages were due but not sent in time\n", (unsigned long long)unsent);
    for (int kind = 0; kind < ERROR_KINDS; kind++)
        if (errors[kind]) printf("  ERRORS       %s: %llu\n", error_names[kind], (unsigned long long)errors[kind]);
}

/* --- the command line --- */

static void print_help(FILE *out) {
    fputs("usage: loadgen --port PORT [options]\n"
          "\n"
          "  --host HOST       the server (127.0.0.1)\n"
          "  --mode MODE       echo, line, frame, broadcast, connect or idle (echo)\n"
          "  --connections N   at once (100)\n"
          "  --size BYTES      a message, its newline included, the header of a frame not (64)\n"
          "  --depth D         echo: messages outstanding on a connection; others: messages in one write (1)\n"
          "  --request TEXT    line: send this line, instead of --size random bytes\n"
          "  --reply TEXT      and expect this one\n"
          "  --duration S      measured seconds (3)\n"
          "  --warmup S        seconds before that (0.5)\n"
          "  --rate R          open loop: R messages a second over all connections; 0: closed loop (0)\n"
          "  --cpu N           run on processor N only\n"
          "  --pid PID         the server's process: measure its processor time too\n"
          "  --json            print one JSON object\n"
          "\n"
          "exit status: 0; 1 something failed; 2 usage; 3 a reply was wrong; 4 out of time\n",
          out);
}

static double number(const char *name, double low, double high) {
    char *end;
    double value = strtod(optarg, &end);
    if (end == optarg || *end != '\0' || !(value >= low && value <= high)) {
        fprintf(stderr, "loadgen: --%s must be %g..%g, got %s\n", name, low, high, optarg);
        exit(2);
    }
    return value;
}

static enum mode parse_mode(void) {
    for (int mode = 0; mode < MODES; mode++)
        if (strcmp(optarg, mode_names[mode]) == 0) return (enum mode)mode;
    fprintf(stderr, "loadgen: --mode must be echo, line, frame, broadcast, connect or idle, got %s\n", optarg);
    exit(2);
}

static void require(bool is_right, const char *what) {
    if (is_right) return;
    fprintf(stderr, "loadgen: %s\n", what);
    exit(2);
}

static const char *parse_text(void) {
    require(*optarg && !strchr(optarg, '\n'), "--request and --reply must be lines, without their newlines");
    return optarg;
}

static void check_options(void) {
    require(options.size * options.depth <= 1 << 26, "--size times --depth must be at most 64 MiB");
    require((options.mode != CONNECT && options.mode != IDLE) || options.depth == 1,
            "--mode connect and idle send one message a connection: --depth must be 1");
    require((options.mode != BROADCAST && options.mode != IDLE) || options.rate == 0,
            "--mode broadcast and idle have no schedule: --rate must be 0");
    require(!options.request == !options.reply, "--request and --reply go together");
    require(!options.request || options.mode == LINE, "--request and --reply are for --mode line");
}

static void parse(int argc, char **argv) {
    static const struct option long_options[] = {
        {"host", required_argument, NULL, 'h'},     {"port", required_argument, NULL, 'p'},
        {"mode", required_argument, NULL, 'm'},     {"connections", required_argument, NULL, 'c'},
        {"size", required_argument, NULL, 's'},     {"depth", required_argument, NULL, 'd'},
        {"request", required_argument, NULL, 'q'},  {"reply", required_argument, NULL, 'y'},
        {"duration", required_argument, NULL, 't'}, {"warmup", required_argument, NULL, 'w'},
        {"rate", required_argument, NULL, 'r'},     {"cpu", required_argument, NULL, 'u'},
        {"pid", required_argument, NULL, 'i'},      {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'H'},           {NULL, 0, NULL, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        switch (option) {
        case 'h': options.host = optarg; break;
        case 'p': options.port = (long)number("port", 1, 65535); break;
        case 'm': options.mode = parse_mode(); break;
        case 'c': options.connections = (long)number("connections", 1, 1e6); break;
        case 's': options.size = (long)number("size", 1, 1 << 24); break;
        case 'd': options.depth = (long)number("depth", 1, 65536); break;
        case 'q': options.request = parse_text(); break;
        case 'y': options.reply = parse_text(); break;
        case 't': options.duration = number("duration", 0.05, 3600); break;
        case 'w': options.warmup = number("warmup", 0, 3600); break;
        case 'r': options.rate = number("rate", 0, 1e8); break;
        case 'u': options.cpu = (long)number("cpu", 0, CPU_SETSIZE - 1); break;
        case 'i': options.pid = (long)number("pid", 1, 1 << 22); break;
        case 'j': options.json = true; break;
        case 'H': print_help(stdout); exit(0);
        default: print_help(stderr); exit(2);
        }
    }
    if (options.port == 0 || optind != argc) {
        print_help(stderr);
        exit(2);
    }
    if (options.request) options.size = (long)strlen(options.request) + 1;
    check_options();
}

static void resolve(void) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *found;
    char port[16];
    snprintf(port, sizeof port, "%ld", options.port);
    int error = getaddrinfo(options.host, port, &hints, &found);
    if (error) {
        fprintf(stderr, "loadgen: --host %s: %s\n", options.host, gai_strerror(error));
        exit(2);
    }
    memcpy(&server, found->ai_addr, found->ai_addrlen);
    server_size = found->ai_addrlen;
    freeaddrinfo(found);
}

static void out_of_time(int signal_number) {
    static const char text[] = "loadgen: out of time\n";
    (void)signal_number;
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) _exit(5);
    _exit(4);
}

static void prepare(void) {
    signal(SIGALRM, out_of_time);
    signal(SIGPIPE, SIG_IGN); /* OpenSSL does not send with MSG_NOSIGNAL */
    alarm((unsigned)(options.warmup + options.duration) + RAMP_LIMIT_S + DRAIN_LIMIT_S + 10);
    if (options.cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((size_t)options.cpu, &set);
        if (sched_setaffinity(0, sizeof set, &set) < 0) die("sched_setaffinity");
    }
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) die("getrlimit");
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0) die("setrlimit");
    if ((rlim_t)options.connections + 16 > limit.rlim_max) {
        fprintf(stderr, "loadgen: %ld connections need more than the %llu descriptors allowed\n", options.connections,
                (unsigned long long)limit.rlim_max);
        exit(1);
    }
    ring = options.mode == ECHO ? (uint64_t)options.depth : 1;
    connections = calloc((size_t)options.connections, sizeof *connections);
    uint64_t *rings = calloc((size_t)options.connections * ring, sizeof *rings);
    if (!connections || !rings) die("memory for connections");
    for (long i = 0; i < options.connections; i++) connections[i].sent_at = rings + (uint64_t)i * ring;
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0) die("epoll_create1");
}

int main(int argc, char **argv) {
    parse(argc, argv);
    resolve();
    prepare();
    make_streams();
    if (options.mode == BROADCAST) ramp_up_members();
    else if (options.mode != CONNECT) ramp_up();
    if (options.mode == IDLE) {
        hold();
        return 0;
    }
    start_load();
    run_until(now_ns() + (uint64_t)(options.warmup * 1e9));

    struct usage before = usage_now();
    uint64_t begin = now_ns();
    is_measuring = true;
    run_until(begin + (uint64_t)(options.duration * 1e9));
    uint64_t end = now_ns();
    struct usage after = usage_now();
    drain(end);

    double seconds = (double)(end - begin) / 1e9;
    struct usage used = usage_between(&before, &after);
    (options.json ? print_json : print_text)(seconds, used);
    for (int kind = 0; kind < ERROR_KINDS; kind++)
        if (errors[kind]) return 1;
    if (counted == 0) {
        fprintf(stderr, "loadgen: nothing came back in the measured time\n");
        return 1;
    }
    return 0;
}
