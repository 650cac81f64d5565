/* Load generator: drives an echo server from one thread and measures it.
 *
 * Modes
 *   echo     fixed-size messages, echoed back byte for byte (every byte is checked)
 *   line     newline-terminated messages; --depth of them in one write, then wait for all of them
 *   connect  connect, one message, its echo, close; --connections of these cycles in flight
 *
 * Closed loop (default): each connection sends its next --depth messages when the last ones are back; latency is
 * from the send to the last byte of the echo. Open loop (--rate): messages are due on a fixed schedule, and
 * latency counts from the moment a message was due, so that a server that stalls is charged for every message it
 * held up (no coordinated omission).
 *
 * Everything is bounded: a run ends by itself --duration seconds after the warm-up, or fails.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
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

enum mode { MODE_ECHO, MODE_LINE, MODE_CONNECT };

static struct {
    const char *host;
    int port, connections, depth, cpu;
    size_t size;
    double duration, warmup, rate;
    enum mode mode;
    bool json;
} options = {"127.0.0.1", 0, 100, 1, -1, 64, 3.0, 0.5, 0.0, MODE_ECHO, false};

/* --- latency histogram: log-linear, 128 steps an octave (0.8 %), 1 ns to 2^36 ns (69 s) --- */

enum { SUB_BITS = 7, SUB = 1 << SUB_BITS, OCTAVES = 37 - SUB_BITS };
static uint64_t histogram[OCTAVES * SUB + SUB];
static uint64_t histogram_count, histogram_max;

static size_t bucket_of(uint64_t ns) {
    if (ns < SUB) return ns;
    int octave = 63 - __builtin_clzll(ns) - SUB_BITS;
    if (octave >= OCTAVES) return sizeof histogram / sizeof *histogram - 1;
    return (size_t)octave * SUB + (size_t)(ns >> octave);
}

static double bucket_middle(size_t bucket) {
    if (bucket < 2 * SUB) return (double)bucket;
    int octave = (int)(bucket / SUB) - 1;
    return ((double)(bucket % SUB + SUB) + 0.5) * (double)(1ull << octave);
}

static void record(uint64_t ns) {
    histogram[bucket_of(ns)]++;
    histogram_count++;
    if (ns > histogram_max) histogram_max = ns;
}

static double percentile_us(double p) {
    uint64_t wanted = (uint64_t)(p / 100.0 * (double)histogram_count + 0.999999), seen = 0;
    for (size_t i = 0; i < sizeof histogram / sizeof *histogram; i++) {
        seen += histogram[i];
        if (seen >= wanted && seen) {
            double ns = bucket_middle(i);
            return (ns < (double)histogram_max ? ns : (double)histogram_max) / 1000.0;
        }
    }
    return 0.0;
}

/* --- connections --- */

struct connection {
    int fd;
    bool connecting;
    uint64_t sent, received; /* bytes of the stream so far */
    uint64_t target;         /* bytes that are due to have been sent */
    uint64_t due_head, due_tail; /* ring of the moments at which unanswered messages were due */
};

static struct connection *connections;
static uint64_t *due; /* connections × ring size */
static size_t ring_size;
static char *pattern; /* what the stream of every connection consists of, repeated */
static size_t pattern_size;
static int epoll_fd;
static uint64_t messages, bytes, connects, refused, resets, ended_early;
static bool measuring;
static struct sockaddr_in server;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void die(const char *what) {
    fprintf(stderr, "loadgen: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void watch(struct connection *c, int op, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll_fd, op, c->fd, &event) < 0) die("epoll_ctl");
}

static void open_connection(struct connection *c) {
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    int on = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (options.mode == MODE_CONNECT) {
        /* Close with a reset, so that a million connects do not use up the ports in TIME_WAIT. */
        struct linger linger = {1, 0};
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    }
    c->connecting = true;
    c->sent = c->received = c->target = 0;
    if (connect(c->fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS) die("connect");
    watch(c, EPOLL_CTL_ADD, EPOLLOUT);
}

static void push_due(struct connection *c, uint64_t when) {
    if (c->due_tail - c->due_head >= ring_size) return; /* hopelessly behind: the oldest ones tell enough */
    due[(size_t)(c - connections) * ring_size + c->due_tail++ % ring_size] = when;
}

/* Send what is due and has not been sent. */
static void pump(struct connection *c) {
    while (c->sent < c->target) {
        size_t at = c->sent % pattern_size, n = pattern_size - at;
        if (n > c->target - c->sent) n = c->target - c->sent;
        ssize_t w = send(c->fd, pattern + at, n, MSG_NOSIGNAL);
        if (w < 0) {
            if (errno == EAGAIN) {
                watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
                return;
            }
            if (errno == ECONNRESET || errno == EPIPE) {
                resets++;
                return;
            }
            die("send");
        }
        c->sent += (uint64_t)w;
    }
}

/* Make one more batch (echo, line: --depth messages; connect: one) due now. */
static void start_batch(struct connection *c, uint64_t when) {
    push_due(c, when);
    c->target += options.size * (uint64_t)(options.mode == MODE_CONNECT ? 1 : options.depth);
    pump(c);
}

static uint64_t batch_bytes(void) {
    if (options.rate > 0 || options.mode == MODE_CONNECT) return options.size;
    return options.size * (uint64_t)options.depth;
}

static void answer_complete(struct connection *c, uint64_t now) {
    uint64_t when = due[(size_t)(c - connections) * ring_size + c->due_head++ % ring_size];
    if (measuring) {
        record(now - when);
        messages += batch_bytes() / options.size;
        bytes += batch_bytes();
    }
}

static void handle_readable(struct connection *c) {
    static char input[1 << 18];
    for (;;) {
        ssize_t n = recv(c->fd, input, sizeof input, 0);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) {
            if (n < 0) resets++;
            else ended_early++;
            fprintf(stderr, "loadgen: the server closed a connection\n");
            exit(1);
        }
        for (size_t done = 0; done < (size_t)n;) {
            size_t at = (c->received + done) % pattern_size, m = pattern_size - at;
            if (m > (size_t)n - done) m = (size_t)n - done;
            if (memcmp(input + done, pattern + at, m) != 0) {
                fprintf(stderr, "loadgen: wrong bytes in the echo, near byte %llu of a connection\n",
                        (unsigned long long)(c->received + done));
                exit(1);
            }
            done += m;
        }
        uint64_t before = c->received / batch_bytes();
        c->received += (uint64_t)n;
        if (c->received > c->sent) {
            fprintf(stderr, "loadgen: more bytes came back than were sent\n");
            exit(1);
        }
        uint64_t complete = c->received / batch_bytes() - before;
        if (complete) {
            uint64_t now = now_ns();
            while (complete--) answer_complete(c, now);
            if (options.mode == MODE_CONNECT) {
                if (measuring) connects++;
                close(c->fd);
                c->due_head = c->due_tail = 0;
                open_connection(c);
                push_due(c, now_ns());
                return;
            }
            if (options.rate == 0.0 && c->received == c->target) start_batch(c, now);
        }
        if ((size_t)n < sizeof input) return;
    }
}

static void handle_connected(struct connection *c) {
    int error = 0;
    socklen_t n = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &n);
    if (error) {
        refused++;
        errno = error;
        die("connect");
    }
    c->connecting = false;
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

static void step(int timeout_ms) {
    struct epoll_event events[1024];
    int n = epoll_wait(epoll_fd, events, 1024, timeout_ms);
    if (n < 0 && errno != EINTR) die("epoll_wait");
    for (int i = 0; i < n; i++) {
        struct connection *c = events[i].data.ptr;
        if (c->connecting) {
            handle_connected(c);
            if (options.mode == MODE_CONNECT) {
                c->target = options.size;
                pump(c);
            }
            continue;
        }
        if (events[i].events & EPOLLOUT) {
            watch(c, EPOLL_CTL_MOD, EPOLLIN);
            pump(c);
        }
        if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) handle_readable(c);
    }
}

/* Open all connections, at most 256 of them on their way at once, so that no backlog overflows. */
static void connect_all(void) {
    uint64_t deadline = now_ns() + 60ull * 1000000000ull;
    int opened = 0, up = 0;
    while (up < options.connections) {
        while (opened < options.connections && opened - up < 256) open_connection(&connections[opened++]);
        step(100);
        up = 0;
        for (int i = 0; i < opened; i++) up += !connections[i].connecting;
        if (now_ns() > deadline) {
            errno = ETIMEDOUT;
            die("connecting");
        }
    }
}

static void run(double seconds) {
    uint64_t begin = now_ns(), end = begin + (uint64_t)(seconds * 1e9);
    static double next_due; /* of the schedule, in ns */
    static int next_connection;
    if (next_due == 0.0) next_due = (double)begin;
    uint64_t now = begin;
    while (now < end) {
        if (options.rate > 0) {
            while (next_due <= (double)now) {
                start_batch(&connections[next_connection], (uint64_t)next_due);
                next_connection = (next_connection + 1) % options.connections;
                next_due += 1e9 / options.rate;
            }
            step(0); /* spin: a sleep would be longer than the gaps of the schedule */
        } else {
            step(100);
        }
        now = now_ns();
    }
}

static void usage(FILE *out) {
    fprintf(out,
            "usage: loadgen --port PORT [options]\n"
            "  --host IP            server (127.0.0.1)\n"
            "  --connections N      connections at once (100)\n"
            "  --size BYTES         message size (64)\n"
            "  --depth D            messages sent together on a connection (1)\n"
            "  --duration S         measured seconds (3)\n"
            "  --warmup S           seconds before (0.5)\n"
            "  --rate M             open loop: M messages/s over all connections; 0: closed loop (0)\n"
            "  --mode MODE          echo, line or connect (echo)\n"
            "  --cpu N              run on processor N only\n"
            "  --json               print one JSON object\n");
}

static void parse(int argc, char **argv) {
    static const struct option longs[] = {
        {"host", 1, 0, 'h'},   {"port", 1, 0, 'p'}, {"connections", 1, 0, 'c'}, {"size", 1, 0, 's'},
        {"depth", 1, 0, 'd'},  {"duration", 1, 0, 't'}, {"warmup", 1, 0, 'w'},  {"rate", 1, 0, 'r'},
        {"mode", 1, 0, 'm'},   {"cpu", 1, 0, 'u'},  {"json", 0, 0, 'j'},        {"help", 0, 0, 'H'},
        {0, 0, 0, 0}};
    int o;
    while ((o = getopt_long(argc, argv, "", longs, NULL)) != -1) switch (o) {
            case 'h': options.host = optarg; break;
            case 'p': options.port = atoi(optarg); break;
            case 'c': options.connections = atoi(optarg); break;
            case 's': options.size = strtoul(optarg, NULL, 10); break;
            case 'd': options.depth = atoi(optarg); break;
            case 't': options.duration = atof(optarg); break;
            case 'w': options.warmup = atof(optarg); break;
            case 'r': options.rate = atof(optarg); break;
            case 'm':
                if (!strcmp(optarg, "echo")) options.mode = MODE_ECHO;
                else if (!strcmp(optarg, "line")) options.mode = MODE_LINE;
                else if (!strcmp(optarg, "connect")) options.mode = MODE_CONNECT;
                else usage(stderr), exit(2);
                break;
            case 'u': options.cpu = atoi(optarg); break;
            case 'j': options.json = true; break;
            case 'H': usage(stdout); exit(0);
            default: usage(stderr); exit(2);
        }
    if (options.port <= 0 || options.connections <= 0 || options.depth <= 0 || options.size < 1 ||
        options.size > (1u << 24) || options.duration <= 0 || options.duration > 600 || options.warmup < 0 ||
        options.rate < 0 || (options.rate > 0 && (options.depth != 1 || options.mode == MODE_CONNECT)))
        usage(stderr), exit(2);
}

int main(int argc, char **argv) {
    parse(argc, argv);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (options.cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(options.cpu, &set);
        if (sched_setaffinity(0, sizeof set, &set) < 0) die("sched_setaffinity");
    }
    server.sin_family = AF_INET;
    server.sin_port = htons((uint16_t)options.port);
    if (inet_pton(AF_INET, options.host, &server.sin_addr) != 1) usage(stderr), exit(2);

    /* The stream: different bytes in every message, so that a message lost, doubled or mixed up shows. */
    size_t count = 1 + (1 << 20) / options.size;
    if (count > 8191) count = 8191; /* prime to the depths in use */
    pattern_size = count * options.size;
    pattern = malloc(pattern_size);
    connections = calloc((size_t)options.connections, sizeof *connections);
    ring_size = options.rate > 0 ? 4096 : 2;
    due = malloc((size_t)options.connections * ring_size * sizeof *due);
    if (!pattern || !connections || !due) die("memory");
    uint64_t x = 88172645463325252ull;
    for (size_t i = 0; i < pattern_size; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        pattern[i] = (char)('a' + x % 26);
        if (options.mode == MODE_LINE && i % options.size == options.size - 1) pattern[i] = '\n';
    }

    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0) die("epoll_create1");
    connect_all();
    uint64_t now = now_ns();
    if (options.rate == 0.0)
        for (int i = 0; i < options.connections; i++) start_batch(&connections[i], now);
    if (options.warmup > 0) run(options.warmup);
    measuring = true;
    uint64_t begin = now_ns();
    run(options.duration);
    double seconds = (double)(now_ns() - begin) / 1e9;

    if (messages == 0) {
        fprintf(stderr, "loadgen: no message came back\n");
        return 1;
    }
    double mib = (double)bytes / 1048576.0;
    if (options.json)
        printf("{\"messages\": %llu, \"bytes\": %llu, \"seconds\": %.6f, \"messages_per_s\": %.1f, "
               "\"mib_per_s\": %.3f, \"connections\": %d, \"connects\": %llu, \"latency_us\": {\"p50\": %.2f, "
               "\"p90\": %.2f, \"p99\": %.2f, \"p99.9\": %.2f, \"max\": %.2f}, "
               "\"errors\": {\"refused\": %llu, \"reset\": %llu, \"ended\": %llu}}\n",
               (unsigned long long)messages, (unsigned long long)bytes, seconds, (double)messages / seconds,
               mib / seconds, options.connections, (unsigned long long)connects, percentile_us(50),
               percentile_us(90), percentile_us(99), percentile_us(99.9), (double)histogram_max / 1000.0,
               (unsigned long long)refused, (unsigned long long)resets, (unsigned long long)ended_early);
    else
        printf("%.0f messages/s, %.1f MiB/s over %d connections in %.1f s\n"
               "latency in us: p50 %.1f, p90 %.1f, p99 %.1f, p99.9 %.1f, max %.1f\n",
               (double)messages / seconds, mib / seconds, options.connections, seconds, percentile_us(50),
               percentile_us(90), percentile_us(99), percentile_us(99.9), (double)histogram_max / 1000.0);
    return 0;
}
