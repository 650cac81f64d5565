/* The raw limit of event dispatch: tokens that hop through pairs of sockets, on level-triggered epoll.
 *
 *   events_epoll PAIRS ACTIVE WRITES ROUNDS
 *
 * ACTIVE pairs are given a byte. Whoever reads a byte writes one to the next pair, until WRITES are used up; a round
 * ends when all bytes are read. One round to warm up, then ROUNDS measured ones, and a line of JSON: events, seconds,
 * and processor time. programs/events.py is the same for event loops of Python.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 1024, PATIENCE_MS = 10000 };

struct watch {
    void (*callback)(struct watch *);
    int reader, writer, following; /* following: the next pair's writer */
};

static struct watch *watches;
static long pairs, active, writes, rounds;
static long writes_left, fired, bytes_read;
static int epoll_fd;

static void die(const char *what) {
    fprintf(stderr, "events_epoll: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void handle_readable(struct watch *w) {
    char byte;
    ssize_t n = read(w->reader, &byte, 1);
    if (n < 0) die("read");
    bytes_read += n;
    if (writes_left > 0) {
        if (write(w->following, "m", 1) != 1) die("write");
        writes_left--;
        fired++;
    }
}

static void run_round(void) {
    static struct epoll_event events[EVENTS];
    writes_left = writes;
    fired = active;
    bytes_read = 0;
    for (long i = 0; i < active; i++)
        if (write(watches[i * (pairs / active)].writer, "m", 1) != 1) die("write");
    while (fired != bytes_read) {
        int count = epoll_wait(epoll_fd, events, EVENTS, PATIENCE_MS);
        if (count == 0) {
            fprintf(stderr, "events_epoll: %ld of %ld bytes were read\n", bytes_read, fired);
            exit(3);
        }
        if (count < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < count; i++) {
            struct watch *w = events[i].data.ptr;
            w->callback(w);
        }
    }
}

static void make_pairs(void) {
    watches = calloc((size_t)pairs, sizeof *watches);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!watches || epoll_fd < 0) die("memory or epoll");
    for (long i = 0; i < pairs; i++) {
        int ends[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) < 0) die("socketpair");
        watches[i] = (struct watch){.callback = handle_readable, .reader = ends[0], .writer = ends[1]};
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &watches[i]};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, ends[0], &event) < 0) die("epoll_ctl");
    }
    for (long i = 0; i < pairs; i++) watches[i].following = watches[(i + 1) % pairs].writer;
}

static double now_s(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static long number(const char *text) {
    char *end;
    long value = strtol(text, &end, 10);
    if (*text == '\0' || *end != '\0' || value < 1 || value > 1000000000) {
        fprintf(stderr, "events_epoll: a number from 1 to 1000000000 is required, got %s\n", text);
        exit(2);
    }
    return value;
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: events_epoll PAIRS ACTIVE WRITES ROUNDS\n");
        return 2;
    }
    pairs = number(argv[1]);
    active = number(argv[2]);
    writes = number(argv[3]);
    rounds = number(argv[4]);
    if (active > pairs) {
        fprintf(stderr, "events_epoll: at most as many active as there are pairs\n");
        return 2;
    }
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    make_pairs();
    run_round();
    double began = now_s(CLOCK_MONOTONIC), used = now_s(CLOCK_PROCESS_CPUTIME_ID);
    for (long i = 0; i < rounds; i++) run_round();
    printf("{\"events\": %ld, \"seconds\": %.9f, \"cpu_s\": %.9f}\n", rounds * (active + writes),
           now_s(CLOCK_MONOTONIC) - began, now_s(CLOCK_PROCESS_CPUTIME_ID) - used);
    return 0;
}
