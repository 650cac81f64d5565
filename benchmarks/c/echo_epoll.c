/* The raw limit: a single-threaded, level-triggered epoll echo server.
 *
 *   echo_epoll [--port PORT] [--cpu N]
 *
 * Prints "listening on 127.0.0.1:PORT" when it is ready and serves until SIGTERM or SIGINT. One read and one write an
 * event. What a peer does not take is kept for it, and until it has taken that, nothing more is read from it: so no
 * peer makes this program hold more than one read buffer for it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ_SIZE = 64 * 1024, EVENTS = 1024 };

struct peer {
    int fd;
    char *unsent; /* NULL while the peer takes everything at once */
    size_t begin, end;
};

static volatile sig_atomic_t is_ended;
static int epoll_fd;

static void on_signal(int number) {
    (void)number;
    is_ended = 1;
}

static void die(const char *what) {
    fprintf(stderr, "echo_epoll: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void watch(int operation, int fd, uint32_t events, void *data) {
    struct epoll_event event = {.events = events, .data.ptr = data};
    if (epoll_ctl(epoll_fd, operation, fd, &event) < 0) die("epoll_ctl");
}

static void end_peer(struct peer *p) {
    close(p->fd);
    free(p->unsent);
    free(p);
}

static void keep(struct peer *p, const char *data, size_t size) {
    p->unsent = malloc(size);
    if (!p->unsent) die("malloc");
    memcpy(p->unsent, data, size);
    p->begin = 0;
    p->end = size;
    watch(EPOLL_CTL_MOD, p->fd, EPOLLOUT, p);
}

static void send_unsent(struct peer *p) {
    ssize_t n = send(p->fd, p->unsent + p->begin, p->end - p->begin, MSG_NOSIGNAL);
    if (n < 0) {
        if (errno != EAGAIN && errno != EINTR) end_peer(p);
        return;
    }
    p->begin += (size_t)n;
    if (p->begin == p->end) {
        free(p->unsent);
        p->unsent = NULL;
        watch(EPOLL_CTL_MOD, p->fd, EPOLLIN, p);
    }
}

static void echo(struct peer *p) {
    static char buffer[READ_SIZE];
    ssize_t n = recv(p->fd, buffer, sizeof buffer, 0);
    if (n <= 0) {
        if (n == 0 || (errno != EAGAIN && errno != EINTR)) end_peer(p);
        return;
    }
    ssize_t sent = send(p->fd, buffer, (size_t)n, MSG_NOSIGNAL);
    if (sent == n) return;
    if (sent < 0) {
        if (errno != EAGAIN && errno != EINTR) {
            end_peer(p);
            return;
        }
        sent = 0;
    }
    keep(p, buffer + sent, (size_t)(n - sent));
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN) return;
            if (errno == EINTR || errno == ECONNABORTED) continue;
            die("accept4"); /* out of descriptors: a figure from here on would be of another workload */
        }
        struct peer *p = calloc(1, sizeof *p);
        if (!p) die("calloc");
        p->fd = fd;
        watch(EPOLL_CTL_ADD, fd, EPOLLIN, p);
    }
}

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

static int number(const char *name, const char *text, long low, long high) {
    char *end;
    long value = strtol(text, &end, 10);
    if (*text == '\0' || *end != '\0' || value < low || value > high) {
        fprintf(stderr, "echo_epoll: --%s must be %ld..%ld, got %s\n", name, low, high, text);
        exit(2);
    }
    return (int)value;
}

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"port", required_argument, NULL, 'p'},
        {"cpu", required_argument, NULL, 'c'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    int port = 0, cpu = -1, option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'p') {
            port = number("port", optarg, 0, 65535);
        } else if (option == 'c') {
            cpu = number("cpu", optarg, 0, CPU_SETSIZE - 1);
        } else {
            fprintf(option == 'h' ? stdout : stderr, "usage: echo_epoll [--port PORT (0: any)] [--cpu N]\n");
            return option == 'h' ? 0 : 2;
        }
    }
    if (cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpu, &set);
        if (sched_setaffinity(0, sizeof set, &set) < 0) die("sched_setaffinity");
    }
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
    while (!is_ended) {
        int count = epoll_pwait(epoll_fd, events, EVENTS, -1, &waiting);
        if (count < 0 && errno != EINTR) die("epoll_pwait");
        for (int i = 0; i < count; i++) {
            struct peer *p = events[i].data.ptr;
            if (!p) accept_all(listener);
            else if (p->unsent) send_unsent(p);
            else echo(p);
        }
    }
    return 0;
}
