/* Preloaded into a process (LD_PRELOAD), makes chosen system calls fail, or do less than they were asked to.
 *
 * The program arms one fault at a time: a kind of call, which one of them (the n-th from now on, or one in so many at
 * random), and what happens to it: an error, or a count cut short. Calls of that kind are counted while it is armed,
 * so a run without a fault tells how many there are to try; and those that it struck, or it might never have done so.
 *
 * Reads and writes mean those of sockets, with one piece of memory or with several (readv, writev); those of event
 * counters and timers are a kind of their own, and those of files and pipes are left alone, or the interpreter could
 * not work; for the same reason only what the library opens is. Datagrams are a kind of their own too: nothing cuts
 * them short. The two builds of the library call different functions for the same thing: here they are one kind.
 *
 * Not here, because the kernel has no reason to refuse what they ask for: close, fstat, ioctl(FIONBIO), the clocks. Nor
 * is what happens only while a program starts (pipe2, for the loop of the main thread), nor what is about the names of
 * files and hosts (flock, stat, chmod, unlink, getaddrinfo).
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
    NONE, READ, READV, WRITE, WRITEV, SENDFILE, COUNTER_READ, COUNTER_WRITE, ACCEPT, CONNECT, SHUTDOWN, SOCKET, BIND,
    LISTEN, GETSOCKNAME, GETPEERNAME, GETSOCKOPT, SETSOCKOPT, UNREAD, EPOLL_WAIT, EPOLL_CTL, EPOLL_CREATE, POLL,
    EVENTFD, TIMERFD_CREATE, TIMERFD_SETTIME, RECVFROM, SENDTO, RECVMSG, OPEN, DUP, PREAD, DESCRIPTOR, KINDS
};

static const char *const names[KINDS] = {
    "none", "read", "readv", "write", "writev", "sendfile", "counter_read", "counter_write", "accept", "connect",
    "shutdown", "socket", "bind", "listen", "getsockname", "getpeername", "getsockopt", "setsockopt", "unread",
    "epoll_wait", "epoll_ctl", "epoll_create", "poll", "eventfd", "timerfd_create", "timerfd_settime", "recvfrom",
    "sendto", "recvmsg", "open", "dup", "pread", "descriptor"
};

static atomic_int armed;      /* the kind that may fail */
static atomic_long calls;     /* of that kind, since it was armed */
static atomic_long struck;    /* of those calls: failed, or cut short */
static long nth;              /* which one fails; 0: one in `odds` */
static long odds;
static int error;             /* 0: the count is cut short to `most` */
static size_t most;
static atomic_uint_fast64_t noise;

/* --- for the program ------------------------------------------------------------------------------------------- */

/* The number of a kind of call, 0 if there is none of that name. */
int faults_kind(const char *name)
{
    for (int i = 1; i < KINDS; i++)
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
    atomic_store(&struck, 0);
    atomic_store(&armed, kind);
}

/* Let nothing fail any more, and return how often something did. */
long faults_disarm(void)
{
    atomic_store(&armed, NONE);
    return atomic_load(&struck);
}

/* How many calls there were of the kind that was armed last. */
long faults_calls(void)
{
    return atomic_load(&calls);
}

/* --- what a call asks ------------------------------------------------------------------------------------------ */

/* All that makes a descriptor is a kind as well: when the table is full, everything fails. */
static int makes_descriptor(enum kind kind)
{
    return kind == ACCEPT || kind == SOCKET || kind == OPEN || kind == DUP || kind == EPOLL_CREATE || kind == EVENTFD
        || kind == TIMERFD_CREATE;
}

static int strikes(enum kind kind)
{
    int wanted = atomic_load(&armed);
    if (wanted != (int)kind && !(wanted == DESCRIPTOR && makes_descriptor(kind)))
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
    atomic_fetch_add(&struck, 1);
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

static int is_datagram(int fd)
{
    int type = 0, kept = errno;
    socklen_t length = sizeof type;
    syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_TYPE, &type, &length);
    errno = kept;
    return type == SOCK_DGRAM;
}

/* What becomes of a call of this kind for `count` bytes: -1 with errno, or how many it may ask for. */
static ssize_t allowed_to(enum kind kind, size_t count)
{
    if (kind == NONE || !strikes(kind))
        return (ssize_t)count;
    if (error != 0) {
        atomic_fetch_add(&struck, 1);
        errno = error;
        return -1;
    }
    if (kind == COUNTER_READ || kind == COUNTER_WRITE || count <= most)
        return (ssize_t)count;
    atomic_fetch_add(&struck, 1);
    return (ssize_t)most;
}

/* The same of reading or writing; what is neither a socket nor a counter is allowed everything. */
static ssize_t allowed(int fd, size_t count, enum kind if_socket, enum kind if_counter)
{
    return allowed_to(kind_of(fd, if_socket, if_counter), count);
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
    if (n >= 0)
        return real(fd, from, (size_t)n);
    if (errno == EAGAIN && kind_of(fd, WRITE, COUNTER_WRITE) == COUNTER_WRITE) {
        const uint64_t full = UINT64_MAX - 1; /* a counter that says so is full, and wakes whoever waits for it */
        if (real(fd, &full, sizeof full) >= 0)
            errno = EAGAIN;
    }
    return -1;
}

int eventfd_write(int fd, eventfd_t value)
{
    return write(fd, &value, sizeof value) == sizeof value ? 0 : -1;
}

ssize_t send(int fd, const void *from, size_t count, int flags)
{
    REAL(send);
    if (is_datagram(fd))
        return fails(SENDTO) ? -1 : real(fd, from, count, flags);
    ssize_t n = allowed(fd, count, WRITE, NONE);
    return n < 0 ? -1 : real(fd, from, (size_t)n, flags);
}

/* Python asks for this one by the name that it has with large files. */
ssize_t sendfile64(int to, int from, off64_t *offset, size_t count)
{
    REAL(sendfile64);
    ssize_t n = allowed(to, count, SENDFILE, NONE);
    return n < 0 ? -1 : real(to, from, offset, (size_t)n);
}

/* Of a file: nothing else can be read at a place. */
ssize_t pread64(int fd, void *into, size_t count, off64_t at)
{
    REAL(pread64);
    ssize_t n = allowed_to(PREAD, count);
    return n < 0 ? -1 : real(fd, into, (size_t)n, at);
}

static size_t size_of(const struct iovec *pieces, size_t count)
{
    size_t size = 0;
    for (size_t i = 0; i < count; i++)
        size += pieces[i].iov_len;
    return size;
}

/* Pieces are cut short to the first one, or a part of it. */
static struct iovec first_of(const struct iovec *pieces, ssize_t length)
{
    struct iovec first = pieces[0];
    if (first.iov_len > (size_t)length)
        first.iov_len = (size_t)length;
    return first;
}

ssize_t readv(int fd, const struct iovec *pieces, int count)
{
    REAL(readv);
    size_t size = size_of(pieces, (size_t)count);
    ssize_t n = allowed(fd, size, count > 1 ? READV : READ, NONE);
    if (n < 0)
        return -1;
    if ((size_t)n == size)
        return real(fd, pieces, count);
    struct iovec first = first_of(pieces, n);
    return real(fd, &first, 1);
}

ssize_t writev(int fd, const struct iovec *pieces, int count)
{
    REAL(writev);
    size_t size = size_of(pieces, (size_t)count);
    ssize_t n = allowed(fd, size, count > 1 ? WRITEV : WRITE, NONE);
    if (n < 0)
        return -1;
    if ((size_t)n == size)
        return real(fd, pieces, count);
    struct iovec first = first_of(pieces, n);
    return real(fd, &first, 1);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    REAL(sendmsg);
    struct msghdr copy = *message;
    size_t size = size_of(copy.msg_iov, copy.msg_iovlen);
    ssize_t n = allowed(fd, size, copy.msg_iovlen > 1 ? WRITEV : WRITE, NONE);
    if (n < 0)
        return -1;
    struct iovec first;
    if ((size_t)n < size) {
        first = first_of(copy.msg_iov, n);
        copy.msg_iov = &first;
        copy.msg_iovlen = 1;
    }
    return real(fd, &copy, flags);
}

/* --- datagrams ------------------------------------------------------------------------------------------------- */

ssize_t recvfrom(int fd, void *into, size_t count, int flags, struct sockaddr *from, socklen_t *length)
{
    REAL(recvfrom);
    return fails(RECVFROM) ? -1 : real(fd, into, count, flags, from, length);
}

ssize_t sendto(int fd, const void *data, size_t count, int flags, const struct sockaddr *to, socklen_t length)
{
    REAL(sendto);
    return fails(SENDTO) ? -1 : real(fd, data, count, flags, to, length);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    REAL(recvmsg);
    return fails(RECVMSG) ? -1 : real(fd, message, flags);
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
    if (!fails(CONNECT))
        return real(fd, address, length);
    if (errno != EINTR)
        return -1;
    real(fd, address, length); /* what was interrupted goes on */
    errno = EINTR;
    return -1;
}

int shutdown(int fd, int how)
{
    REAL(shutdown);
    return fails(SHUTDOWN) ? -1 : real(fd, how);
}

int socket(int domain, int type, int protocol)
{
    REAL(socket);
    return fails(SOCKET) ? -1 : real(domain, type, protocol);
}

int bind(int fd, const struct sockaddr *address, socklen_t length)
{
    REAL(bind);
    return fails(BIND) ? -1 : real(fd, address, length);
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

int getpeername(int fd, struct sockaddr *address, socklen_t *length)
{
    REAL(getpeername);
    return fails(GETPEERNAME) ? -1 : real(fd, address, length);
}

int getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
    REAL(getsockopt);
    return fails(GETSOCKOPT) ? -1 : real(fd, level, option, value, length);
}

int setsockopt(int fd, int level, int option, const void *value, socklen_t length)
{
    REAL(setsockopt);
    return fails(SETSOCKOPT) ? -1 : real(fd, level, option, value, length);
}

int ioctl(int fd, unsigned long request, ...)
{
    REAL(ioctl);
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    return request == FIONREAD && fails(UNREAD) ? -1 : real(fd, request, argument);
}

/* Python asks for these two by the names that they have with large files. What the library opens is an acceptor's
 * reserve, or a file to be sent. */
int open64(const char *path, int flags, ...)
{
    REAL(open64);
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    if ((strcmp(path, "/dev/null") == 0 || flags & O_NONBLOCK) && fails(OPEN))
        return -1;
    return real(path, flags, mode);
}

int fcntl64(int fd, int command, ...)
{
    REAL(fcntl64);
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    return command == F_DUPFD_CLOEXEC && fails(DUP) ? -1 : real(fd, command, argument);
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
    return fails(TIMERFD_CREATE) ? -1 : real(clock, flags);
}

int timerfd_settime(int fd, int flags, const struct itimerspec *value, struct itimerspec *old)
{
    REAL(timerfd_settime);
    return fails(TIMERFD_SETTIME) ? -1 : real(fd, flags, value, old);
}
