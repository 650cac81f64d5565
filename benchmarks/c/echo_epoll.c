/* The raw limit: a single-threaded, level-triggered epoll server.
 *
 *   echo_epoll [--port PORT] [--cpu N] [--mode MODE]
 *
 * Modes
 *   echo       what arrives goes back
 *   line       messages that end in a newline: each complete one goes back
 *   frame      messages behind a header of 4 bytes, their length in network order: likewise
 *   broadcast  the same messages: each complete one goes to every connection
 *
 * Prints "listening on 127.0.0.1:PORT" when it is ready and serves until SIGTERM or SIGINT. One read an event, and one
 * write for all that it completed (broadcast: one a connection). What a peer does not take is kept for it, and until
 * it has taken that, nothing more is read from it: so no peer makes this program hold more than one read for it. In a
 * broadcast it would be the others that fill its buffer, so there one that is too far behind is cut off.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
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
#include <unistd.h>

enum {
    READ_SIZE = 256 * 1024,
    MESSAGE_MAX = 64 * 1024,        /* a longer one is against the protocol */
    BEHIND_MAX = 64 * 1024 * 1024,  /* bytes that a peer may be behind in a broadcast */
    HEADER = 4,
    EVENTS = 1024,
};

enum mode { ECHO, LINE, FRAME, BROADCAST, MODES };
static const char *const mode_names[] = {"echo", "line", "frame", "broadcast"};
static enum mode mode = ECHO;

struct bytes {
    char *data;
    size_t begin, end, capacity;
};

struct peer {
    int fd;               /* -1: ended */
    size_t number;        /* its place in `peers` */
    struct bytes unsent;  /* what it did not take at once */
    struct bytes partial; /* the beginning of a message */
    struct peer *next_ended;
};

static volatile sig_atomic_t is_stopped;
static int epoll_fd;
static struct peer **peers;
static size_t peer_count, peer_capacity;
static struct peer *ended; /* freed when no event of this round can refer to them any more */

static void on_signal(int number) {
    (void)number;
    is_stopped = 1;
}

static void die(const char *what) {
    fprintf(stderr, "echo_epoll: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void watch(int operation, int fd, uint32_t events, void *data) {
    struct epoll_event event = {.events = events, .data.ptr = data};
    if (epoll_ctl(epoll_fd, operation, fd, &event) < 0) die("epoll_ctl");
}

static size_t size_of(const struct bytes *b) { return b->end - b->begin; }

static void append(struct bytes *b, const char *data, size_t size) {
    if (b->begin > 0 && b->end + size > b->capacity) {
        memmove(b->data, b->data + b->begin, size_of(b));
        b->end -= b->begin;
        b->begin = 0;
    }
    if (b->end + size > b->capacity) {
        b->capacity = 2 * b->capacity > b->end + size ? 2 * b->capacity : b->end + size;
        b->data = realloc(b->data, b->capacity);
        if (!b->data) die("realloc");
    }
    memcpy(b->data + b->end, data, size);
    b->end += size;
}

static void release(struct bytes *b) {
    free(b->data);
    *b = (struct bytes){0};
}

/* --- the life of a peer --- */

static void add_peer(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct peer *p = calloc(1, sizeof *p);
    if (!p) die("calloc");
    if (peer_count == peer_capacity) {
        peer_capacity = peer_capacity ? 2 * peer_capacity : 64;
        peers = realloc(peers, peer_capacity * sizeof *peers);
        if (!peers) die("realloc");
    }
    p->fd = fd;
    p->number = peer_count;
    peers[peer_count++] = p;
    watch(EPOLL_CTL_ADD, fd, EPOLLIN, p);
}

static void end_peer(struct peer *p) {
    close(p->fd);
    p->fd = -1;
    peers[p->number] = peers[--peer_count];
    peers[p->number]->number = p->number;
    p->next_ended = ended;
    ended = p;
}

static void free_ended(void) {
    while (ended) {
        struct peer *p = ended;
        ended = p->next_ended;
        release(&p->unsent);
        release(&p->partial);
        free(p);
    }
}

/* --- out --- */

/* Returns how much of it the kernel took; -1 if the peer was ended. */
static ssize_t send_some(struct peer *p, const char *data, size_t size) {
    ssize_t n = send(p->fd, data, size, MSG_NOSIGNAL);
    if (n >= 0) return n;
    if (errno == EAGAIN || errno == EINTR) return 0;
    end_peer(p);
    return -1;
}

static void send_or_keep(struct peer *p, const char *data, size_t size) {
    if (size_of(&p->unsent) > 0) {
        append(&p->unsent, data, size);
        if (size_of(&p->unsent) > BEHIND_MAX) end_peer(p);
        return;
    }
    ssize_t n = send_some(p, data, size);
    if (n < 0 || (size_t)n == size) return;
    append(&p->unsent, data + n, size - (size_t)n);
    watch(EPOLL_CTL_MOD, p->fd, mode == BROADCAST ? EPOLLIN | EPOLLOUT : EPOLLOUT, p);
}

static void send_unsent(struct peer *p) {
    ssize_t n = send_some(p, p->unsent.data + p->unsent.begin, size_of(&p->unsent));
    if (n < 0) return;
    p->unsent.begin += (size_t)n;
    if (size_of(&p->unsent) > 0) return;
    release(&p->unsent);
    watch(EPOLL_CTL_MOD, p->fd, EPOLLIN, p);
}

static void send_to_all(const char *data, size_t size) {
    for (size_t i = peer_count; i-- > 0;) send_or_keep(peers[i], data, size); /* backwards: one may end here */
}

/* --- in --- */

/* Returns the size of the message that stands at the front, 0 while it is not complete. */
static size_t complete_message(const char *data, size_t size) {
    if (mode == LINE) {
        const char *newline = memchr(data, '\n', size);
        return newline ? (size_t)(newline - data) + 1 : 0;
    }
    uint32_t length;
    if (size < HEADER) return 0;
    memcpy(&length, data, HEADER);
    size_t whole = HEADER + (size_t)ntohl(length);
    return whole <= size ? whole : 0;
}

static bool is_too_long(const char *data, size_t size) {
    uint32_t length;
    if (mode == LINE || size < HEADER) return size > MESSAGE_MAX;
    memcpy(&length, data, HEADER);
    return ntohl(length) > MESSAGE_MAX;
}

static void handle_readable(struct peer *p) {
    static char input[HEADER + MESSAGE_MAX + READ_SIZE], output[sizeof input];
    size_t size = size_of(&p->partial);
    if (size > 0) memcpy(input, p->partial.data + p->partial.begin, size);
    ssize_t n = recv(p->fd, input + size, READ_SIZE, 0);
    if (n <= 0) {
        if (n == 0 || (errno != EAGAIN && errno != EINTR)) end_peer(p);
        return;
    }
    size += (size_t)n;
    if (mode == ECHO) {
        send_or_keep(p, input, size);
        return;
    }
    size_t taken = 0, message;
    while ((message = complete_message(input + taken, size - taken)) > 0) {
        memcpy(output + taken, input + taken, message);
        taken += message;
    }
    if (is_too_long(input + taken, size - taken)) {
        fprintf(stderr, "echo_epoll: a message of more than %d bytes\n", MESSAGE_MAX);
        end_peer(p);
        return;
    }
    p->partial.begin = p->partial.end = 0;
    if (taken < size) append(&p->partial, input + taken, size - taken);
    if (taken == 0) return;
    if (mode == BROADCAST) send_to_all(output, taken);
    else send_or_keep(p, output, taken);
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            add_peer(fd);
            continue;
        }
        if (errno == EAGAIN) return;
        if (errno == EINTR || errno == ECONNABORTED) continue;
        die("accept4"); /* out of descriptors: a figure from here on would be of another workload */
    }
}

/* --- the program --- */

static int listen_on(int port) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    socklen_t size = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (listener < 0) die("socket");
    if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0) die("SO_REUSEADDR");
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0) die("bind");
    if (listen(listener, SOMAXCONN) < 0) die("listen");
    watch(EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
    if (getsockname(listener, (struct sockaddr *)&address, &size) < 0) die("getsockname");
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

static int number(const char *name, long low, long high) {
    char *end;
    long value = strtol(optarg, &end, 10);
    if (*optarg == '\0' || *end != '\0' || value < low || value > high) {
        fprintf(stderr, "echo_epoll: --%s must be %ld..%ld, got %s\n", name, low, high, optarg);
        exit(2);
    }
    return (int)value;
}

static enum mode parse_mode(void) {
    for (int i = 0; i < MODES; i++)
        if (strcmp(optarg, mode_names[i]) == 0) return (enum mode)i;
    fprintf(stderr, "echo_epoll: --mode must be echo, line, frame or broadcast, got %s\n", optarg);
    exit(2);
}

/* Returns the port. */
static int parse(int argc, char **argv) {
    static const struct option options[] = {
        {"port", required_argument, NULL, 'p'}, {"cpu", required_argument, NULL, 'c'},
        {"mode", required_argument, NULL, 'm'}, {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    int port = 0, option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        cpu_set_t set;
        switch (option) {
        case 'p': port = number("port", 0, 65535); break;
        case 'm': mode = parse_mode(); break;
        case 'c':
            CPU_ZERO(&set);
            CPU_SET((size_t)number("cpu", 0, CPU_SETSIZE - 1), &set);
            if (sched_setaffinity(0, sizeof set, &set) < 0) die("sched_setaffinity");
            break;
        default:
            fprintf(option == 'h' ? stdout : stderr,
                    "usage: echo_epoll [--port PORT (0: any)] [--cpu N] [--mode echo|line|frame|broadcast]\n");
            exit(option == 'h' ? 0 : 2);
        }
    }
    return port;
}

int main(int argc, char **argv) {
    int port = parse(argc, argv);
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }

    /* Blocked but for the moment of waiting, so that no signal slips in between the check and the wait. */
    sigset_t blocked, waiting;
    struct sigaction action = {.sa_handler = on_signal};
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    sigaddset(&blocked, SIGINT);
    sigprocmask(SIG_BLOCK, &blocked, &waiting);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);

    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0) die("epoll_create1");
    int listener = listen_on(port);
    static struct epoll_event events[EVENTS];
    while (!is_stopped) {
        int count = epoll_pwait(epoll_fd, events, EVENTS, -1, &waiting);
        if (count < 0 && errno != EINTR) die("epoll_pwait");
        for (int i = 0; i < count; i++) {
            struct peer *p = events[i].data.ptr;
            uint32_t happened = events[i].events;
            if (!p) {
                accept_all(listener);
                continue;
            }
            if (p->fd >= 0 && happened & EPOLLOUT) send_unsent(p);
            if (p->fd >= 0 && happened & ~(uint32_t)EPOLLOUT && (mode == BROADCAST || size_of(&p->unsent) == 0))
                handle_readable(p);
        }
        free_ended();
    }
    return 0;
}
