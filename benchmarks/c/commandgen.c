/* Command generator: drives a server of requests and answers over TCP, from one thread, with bytes given beforehand.
 *
 * A file holds batches of requests, all of the same size, and another the answers to each batch, all of the same size.
 * Each connection sends one batch with one write, and when all of its answers are back and right to the last byte, the
 * next one; connection i begins with batch i. So a batch of p requests is a pipeline of depth p. Which protocol it is
 * does not matter, as long as an answer is known when its request is.
 *
 * Printed is one line of JSON: "batches_per_s" in the measured time, by the clock on the wall; "batches", all that were
 * answered from the first connection to the last answer, for who looks at the server's processor time before and after;
 * "busy", the part of the measured time that this program was running.
 *
 * Exit status: 0; 1 something failed; 2 usage; 3 an answer was wrong; 4 out of time.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
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

#define SECOND 1000000000ull /* everything here counts in nanoseconds */

enum { EVENTS = 256, INPUT_SIZE = 256 * 1024, MARGIN_S = 30 };

static struct {
    const char *requests, *answers;
    long port, connections, batches, cpu;
    double duration, warmup;
} options = {.connections = 50, .batches = 1, .cpu = -1, .duration = 1.0, .warmup = 0.2};

struct batches {
    char *bytes;
    size_t size; /* of one of them */
};

struct connection {
    int fd;
    long batch;            /* the one under way */
    size_t sent, received; /* bytes of it, and of its answers */
    bool is_watched_for_out;
};

static struct batches requests, answers;
static struct connection *connections;
static int epoll_fd;
static bool is_draining;
static uint64_t answered; /* batches */
static long busy;         /* connections with a batch under way */

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static void die(const char *what) {
    fprintf(stderr, "commandgen: %s: %s\n", what, errno ? strerror(errno) : "not as it should be");
    exit(1);
}

static struct batches load(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) die(path);
    long size = ftell(file);
    rewind(file);
    errno = 0;
    if (size < options.batches || size % options.batches) die(path);
    struct batches loaded = {malloc((size_t)size), (size_t)(size / options.batches)};
    if (!loaded.bytes || fread(loaded.bytes, 1, (size_t)size, file) != (size_t)size) die(path);
    fclose(file);
    return loaded;
}

static void watch(struct connection *c, int operation, bool for_out) {
    struct epoll_event event = {.events = EPOLLIN | (for_out ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(epoll_fd, operation, c->fd, &event) < 0) die("epoll_ctl");
    c->is_watched_for_out = for_out;
}

static void send_more(struct connection *c) {
    while (c->sent < requests.size) {
        const char *from = requests.bytes + (size_t)c->batch * requests.size + c->sent;
        ssize_t n = send(c->fd, from, requests.size - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) {
            if (!c->is_watched_for_out) watch(c, EPOLL_CTL_MOD, true);
            return;
        }
        if (n < 0) die("send");
        c->sent += (size_t)n;
    }
    if (c->is_watched_for_out) watch(c, EPOLL_CTL_MOD, false);
}

static void begin_batch(struct connection *c) {
    c->sent = c->received = 0;
    send_more(c);
}

static void take(struct connection *c) {
    static char input[INPUT_SIZE];
    ssize_t n = recv(c->fd, input, sizeof input, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        if (n == 0) errno = ECONNRESET;
        die("recv");
    }
    if ((size_t)n > answers.size - c->received) {
        fprintf(stderr, "commandgen: WRONG ANSWER: more bytes than were asked for\n");
        exit(3);
    }
    const char *expected = answers.bytes + (size_t)c->batch * answers.size + c->received;
    if (memcmp(input, expected, (size_t)n)) {
        size_t at = 0;
        while (input[at] == expected[at]) at++;
        fprintf(stderr, "commandgen: WRONG ANSWER: byte %zu of batch %ld\n", c->received + at, c->batch);
        exit(3);
    }
    c->received += (size_t)n;
    if (c->received < answers.size) return;
    answered++;
    c->batch = (c->batch + 1) % options.batches;
    if (is_draining) busy--;
    else begin_batch(c);
}

static void run_until(uint64_t deadline) {
    struct epoll_event events[EVENTS];
    while (now_ns() < deadline && (!is_draining || busy > 0)) {
        int n = epoll_wait(epoll_fd, events, EVENTS, 10);
        if (n < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) send_more(c);
            if (events[i].events & ~(uint32_t)EPOLLOUT) take(c);
        }
    }
}

static void connect_all(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int on = 1;
    for (long i = 0; i < options.connections; i++) {
        struct connection *c = &connections[i];
        c->batch = i % options.batches;
        c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to) < 0) die("connect");
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (fcntl(c->fd, F_SETFL, O_NONBLOCK) < 0) die("fcntl");
        watch(c, EPOLL_CTL_ADD, false);
    }
}

static uint64_t used_ns(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return ((uint64_t)used.ru_utime.tv_sec + (uint64_t)used.ru_stime.tv_sec) * SECOND +
           ((uint64_t)used.ru_utime.tv_usec + (uint64_t)used.ru_stime.tv_usec) * 1000;
}

static void out_of_time(int signal_number) {
    (void)signal_number;
    _exit(4);
}

static void usage(void) {
    fprintf(stderr, "usage: commandgen --port N --requests FILE --answers FILE [--batches N] [--connections N]\n"
                    "                  [--duration S] [--warmup S] [--cpu N]\n");
    exit(2);
}

static void parse(int argc, char **argv) {
    static const struct option names[] = {
        {"port", required_argument, 0, 'p'},     {"requests", required_argument, 0, 'r'},
        {"answers", required_argument, 0, 'a'},  {"batches", required_argument, 0, 'b'},
        {"connections", required_argument, 0, 'c'}, {"duration", required_argument, 0, 'd'},
        {"warmup", required_argument, 0, 'w'},   {"cpu", required_argument, 0, 'u'},
        {0, 0, 0, 0},
    };
    for (int c; (c = getopt_long(argc, argv, "", names, 0)) != -1;) switch (c) {
        case 'p': options.port = atol(optarg); break;
        case 'r': options.requests = optarg; break;
        case 'a': options.answers = optarg; break;
        case 'b': options.batches = atol(optarg); break;
        case 'c': options.connections = atol(optarg); break;
        case 'd': options.duration = atof(optarg); break;
        case 'w': options.warmup = atof(optarg); break;
        case 'u': options.cpu = atol(optarg); break;
        default: usage();
        }
    if (optind < argc || options.port < 1 || options.port > 65535 || !options.requests || !options.answers ||
        options.batches < 1 || options.connections < 1 || !(options.duration > 0) || !(options.warmup >= 0))
        usage();
}

int main(int argc, char **argv) {
    parse(argc, argv);
    signal(SIGALRM, out_of_time);
    alarm((unsigned)(options.warmup + options.duration) + MARGIN_S);
    if (options.cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((size_t)options.cpu, &set);
        if (sched_setaffinity(0, sizeof set, &set) < 0) die("sched_setaffinity");
    }
    requests = load(options.requests);
    answers = load(options.answers);
    connections = calloc((size_t)options.connections, sizeof *connections);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!connections || epoll_fd < 0) die("memory or epoll");
    connect_all();
    busy = options.connections;
    for (long i = 0; i < options.connections; i++) begin_batch(&connections[i]);
    run_until(now_ns() + (uint64_t)(options.warmup * 1e9));

    uint64_t begin = now_ns(), before = answered, used = used_ns();
    run_until(begin + (uint64_t)(options.duration * 1e9));
    double seconds = (double)(now_ns() - begin) / 1e9;
    uint64_t measured = answered - before;
    used = used_ns() - used;

    is_draining = true;
    run_until(UINT64_MAX);
    printf("{\"batches_per_s\": %.1f, \"batches\": %llu, \"busy\": %.3f}\n", (double)measured / seconds,
           (unsigned long long)answered, (double)used / 1e9 / seconds);
    return 0;
}
