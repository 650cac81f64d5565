/* The limit: a level-triggered epoll echo server in C, one thread, no library.
 *
 *   echo_epoll [--port PORT] [--cpu N]      prints "listening on 127.0.0.1:PORT" and serves until SIGTERM
 *
 * One read and one write an event; what a peer will not take is kept until there is room, and meanwhile nothing
 * more is read from it.
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

struct peer {
    int fd;
    char *unsent;
    size_t begin, end;
};

static volatile sig_atomic_t ended;
static int epoll_fd;

static void on_signal(int number) {
    (void)number;
    ended = 1;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void watch(struct peer *p, int op, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = p};
    if (epoll_ctl(epoll_fd, op, p->fd, &event) < 0) die("epoll_ctl");
}

static void end_peer(struct peer *p) {
    close(p->fd);
    free(p->unsent);
    free(p);
}

static void keep(struct peer *p, const char *data, size_t n) {
    p->unsent = malloc(n);
    if (!p->unsent) die("malloc");
    memcpy(p->unsent, data, n);
    p->begin = 0;
    p->end = n;
    watch(p, EPOLL_CTL_MOD, EPOLLOUT);
}

static void handle(struct peer *p, uint32_t events) {
    static char buffer[65536];
    if (p->unsent) {
        ssize_t w = send(p->fd, p->unsent + p->begin, p->end - p->begin, MSG_NOSIGNAL);
        if (w < 0 && errno != EAGAIN) {
            end_peer(p);
        } else if (w > 0 && (p->begin += (size_t)w) == p->end) {
            free(p->unsent);
            p->unsent = NULL;
            watch(p, EPOLL_CTL_MOD, EPOLLIN);
        }
        return;
    }
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    ssize_t n = read(p->fd, buffer, sizeof buffer);
    if (n > 0) {
        ssize_t w = send(p->fd, buffer, (size_t)n, MSG_NOSIGNAL);
        if (w == n) return;
        if (w < 0 && errno != EAGAIN) end_peer(p);
        else keep(p, buffer + (w > 0 ? w : 0), (size_t)(n - (w > 0 ? w : 0)));
    } else if (n == 0 || errno != EAGAIN) {
        end_peer(p);
    }
}

int main(int argc, char **argv) {
    static const struct option longs[] = {{"port", 1, 0, 'p'}, {"cpu", 1, 0, 'u'}, {0, 0, 0, 0}};
    int port = 0, o;
    while ((o = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        if (o == 'p') {
            port = atoi(optarg);
        } else if (o == 'u') {
            cpu_set_t set;
            CPU_ZERO(&set);
            CPU_SET(atoi(optarg), &set);
            if (sched_setaffinity(0, sizeof set, &set) < 0) die("sched_setaffinity");
        } else {
            return 2;
        }
    }
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    socklen_t n = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, SOMAXCONN) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &n) < 0)
        die("listen");
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct peer acceptor = {.fd = listener};
    watch(&acceptor, EPOLL_CTL_ADD, EPOLLIN);
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);

    struct epoll_event events[1024];
    while (!ended) {
        int count = epoll_wait(epoll_fd, events, 1024, -1);
        for (int i = 0; i < count; i++) {
            struct peer *p = events[i].data.ptr;
            if (p != &acceptor) {
                handle(p, events[i].events);
                continue;
            }
            int fd;
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                struct peer *newcomer = calloc(1, sizeof *newcomer);
                if (!newcomer) die("calloc");
                newcomer->fd = fd;
                watch(newcomer, EPOLL_CTL_ADD, EPOLLIN);
            }
        }
    }
    return 0;
}
