/* Preloaded into a process (LD_PRELOAD), makes chosen system calls fail, or do less than they were asked to.
 *
 * The program arms one fault at a time: a kind of call, which one of them (the n-th from now on, or one in so many at
 * random), and what happens to it: an error, or a count cut short. Calls of that kind are counted while it is armed,
 * so a run without a fault tells how many there are to try.
 *
 * Reads and writes mean those of sockets; those of event counters and timers are a kind of their own, and those of
 * files and pipes are left alone, or the interpreter could not work.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
    NONE, READ, WRITE, COUNTER_READ, COUNTER_WRITE, ACCEPT, CONNECT, SOCKET, EPOLL_WAIT, EPOLL_CTL, EPOLL_CREATE,
    EVENTFD, TIMERFD, GETSOCKNAME, SETSOCKOPT, LISTEN, POLL, KINDS
};

static const char *const names[] = {
    "none", "read", "write", "counter_read", "counter_write", "accept", "connect", "socket", "epoll_wait", "epoll_ctl",
    "epoll_create", "eventfd", "timerfd", "getsockname", "setsockopt", "listen", "poll", NULL
};

static atomic_int armed;      /* the kind that may fail */
static atomic_long calls;     /* of that kind, since it was armed */
static long nth;              /* which one fails; 0: one in `odds` */
static long odds;
static int error;             /* 0: the count is cut short to `most` */
static size_t most;
static atomic_uint_fast64_t noise;

/* --- for the program ------------------------------------------------------------------------------------------- */

/* The number of a kind of call, 0 if there is none of that name. */
int faults_kind(const char *name)
{
    for (int i = 1; names[i] != NULL; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    return 0;
}

/* Let the n-th call of a kind from now on fail; with which == 0 one in `one_in`, as `seed` will have it. */
void faults_arm(int kind, long which, long one_in, unsigned long seed, int number, unsigned long length)
{
    atomic_store(&armed, NONE);
    nth = which;
    odds = one_in;
    error = number;
    most = length;
    atomic_store(&noise, seed | 1);
    atomic_store(&calls, 0);
    atomic_store(&armed, kind);
}

/* Let nothing fail any more, and return how many calls there were. */
long faults_disarm(void)
{
    atomic_store(&armed, NONE);
    return atomic_load(&calls);
}

/* --- what a call asks ------------------------------------------------------------------------------------------ */

static int strikes(enum kind kind)
{
    if (atomic_load(&armed) != (int)kind)
        return 0;
    long number = atomic_fetch_add(&calls, 1) + 1;
    if (nth > 0)
        return number == nth;
    if (odds <= 0)
        return 0;
    uint_fast64_t x = atomic_fetch_add(&noise, 0x9E3779B97F4A7C15u);
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return (x ^ (x >> 31)) % (uint_fast64_t)odds == 0;
}

/* Whether a call of this kind fails now; sets errno. */
static int fails(enum kind kind)
{
    if (!strikes(kind) || error == 0)
        return 0;
    errno = error;
    return 1;
}

static enum kind kind_of(int fd, enum kind if_socket, enum kind if_counter)
{
    struct stat status;
    int kept = errno;
    if (atomic_load(&armed) == NONE || fstat(fd, &status) < 0) {
        errno = kept;
        return NONE;
    }
    if (S_ISSOCK(status.st_mode))
        return if_socket;
    return (status.st_mode & S_IFMT) == 0 ? if_counter : NONE; /* eventfd and timerfd have no type */
}

/* What becomes of reading or writing `count` bytes: -1 with errno, or how many the call may ask for. */
static ssize_t allowed(int fd, size_t count, enum kind if_socket, enum kind if_counter)
{
    enum kind kind = kind_of(fd, if_socket, if_counter);
    if (kind == NONE || !strikes(kind))
        return (ssize_t)count;
    if (error != 0) {
        errno = error;
        return -1;
    }
    return (ssize_t)(kind == if_socket && count > most ? most : count);
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (real == NULL) \
        real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* --- reading and writing --------------------------------------------------------------------------------------- */

ssize_t read(int fd, void *into, size_t count)
{
    REAL(read);
    ssize_t n = allowed(fd, count, READ, COUNTER_READ);
    return n < 0 ? -1 : real(fd, into, (size_t)n);
}

ssize_t recv(int fd, void *into, size_t count, int flags)
{
    REAL(recv);
    ssize_t n = allowed(fd, count, READ, NONE);
    return n < 0 ? -1 : real(fd, into, (size_t)n, flags);
}

ssize_t write(int fd, const void *from, size_t count)
{
    REAL(write);
    ssize_t n = allowed(fd, count, WRITE, COUNTER_WRITE);
    return n < 0 ? -1 : real(fd, from, (size_t)n);
}

ssize_t send(int fd, const void *from, size_t count, int flags)
{
    REAL(send);
    ssize_t n = allowed(fd, count, WRITE, NONE);
    return n < 0 ? -1 : real(fd, from, (size_t)n, flags);
}

ssize_t sendfile(int to, int from, off_t *offset, size_t count)
{
    REAL(sendfile);
    ssize_t n = allowed(to, count, WRITE, NONE);
    return n < 0 ? -1 : real(to, from, offset, (size_t)n);
}

/* Pieces are cut short to the first one, or a part of it. */
static size_t size_of(const struct iovec *pieces, size_t count)
{
    size_t size = 0;
    for (size_t i = 0; i < count; i++)
        size += pieces[i].iov_len;
    return size;
}

ssize_t readv(int fd, const struct iovec *pieces, int count)
{
    REAL(readv);
    size_t size = size_of(pieces, (size_t)count);
    ssize_t n = allowed(fd, size, READ, NONE);
    if (n < 0)
        return -1;
    if ((size_t)n == size)
        return real(fd, pieces, count);
    struct iovec first = pieces[0];
    if (first.iov_len > (size_t)n)
        first.iov_len = (size_t)n;
    return real(fd, &first, 1);
}

static ssize_t cut_message(int fd, struct msghdr *message, struct iovec *first, enum kind kind)
{
    size_t size = size_of(message->msg_iov, message->msg_iovlen);
    ssize_t n = allowed(fd, size, kind, NONE);
    if (n < 0)
        return -1;
    if ((size_t)n < size) {
        *first = message->msg_iov[0];
        if (first->iov_len > (size_t)n)
            first->iov_len = (size_t)n;
        message->msg_iov = first;
        message->msg_iovlen = 1;
    }
    return 0;
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    REAL(recvmsg);
    struct msghdr copy = *message;
    struct iovec first;
    if (cut_message(fd, &copy, &first, READ) < 0)
        return -1;
    ssize_t result = real(fd, &copy, flags);
    message->msg_namelen = copy.msg_namelen;
    message->msg_controllen = copy.msg_controllen;
    message->msg_flags = copy.msg_flags;
    return result;
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    REAL(sendmsg);
    struct msghdr copy = *message;
    struct iovec first;
    if (cut_message(fd, &copy, &first, WRITE) < 0)
        return -1;
    return real(fd, &copy, flags);
}

/* --- everything else: it fails or it does not ------------------------------------------------------------------ */

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    REAL(accept4);
    return fails(ACCEPT) ? -1 : real(fd, address, length, flags);
}

int connect(int fd, const struct sockaddr *address, socklen_t length)
{
    REAL(connect);
    return fails(CONNECT) ? -1 : real(fd, address, length);
}

int socket(int domain, int type, int protocol)
{
    REAL(socket);
    return fails(SOCKET) ? -1 : real(domain, type, protocol);
}

int listen(int fd, int backlog)
{
    REAL(listen);
    return fails(LISTEN) ? -1 : real(fd, backlog);
}

int getsockname(int fd, struct sockaddr *address, socklen_t *length)
{
    REAL(getsockname);
    return fails(GETSOCKNAME) ? -1 : real(fd, address, length);
}

int setsockopt(int fd, int level, int option, const void *value, socklen_t length)
{
    REAL(setsockopt);
    return fails(SETSOCKOPT) ? -1 : real(fd, level, option, value, length);
}

int epoll_wait(int fd, struct epoll_event *events, int most_events, int timeout)
{
    REAL(epoll_wait);
    return fails(EPOLL_WAIT) ? -1 : real(fd, events, most_events, timeout);
}

int poll(struct pollfd *watched, nfds_t count, int timeout)
{
    REAL(poll);
    return fails(POLL) ? -1 : real(watched, count, timeout);
}

int epoll_ctl(int fd, int operation, int of, struct epoll_event *event)
{
    REAL(epoll_ctl);
    return fails(EPOLL_CTL) ? -1 : real(fd, operation, of, event);
}

int epoll_create1(int flags)
{
    REAL(epoll_create1);
    return fails(EPOLL_CREATE) ? -1 : real(flags);
}

int eventfd(unsigned int initial, int flags)
{
    REAL(eventfd);
    return fails(EVENTFD) ? -1 : real(initial, flags);
}

int timerfd_create(int clock, int flags)
{
    REAL(timerfd_create);
    return fails(TIMERFD) ? -1 : real(clock, flags);
}
