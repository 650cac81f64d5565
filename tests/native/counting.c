/* Preloaded into a process (LD_PRELOAD), counts what it asks of the kernel and of the allocator.
 *
 * A look copies all counters, inside the process and at the moment it chooses; the copies are read when the work is
 * over, so that reading them costs the work nothing.
 *
 * A gate can hold the event loop where it waits for events. That makes "the loop sleeps through all of this" a fact
 * instead of a matter of luck.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <unistd.h>

#define LOOKS 8

enum kind {
    READS, WRITES, WAITS, EPOLL_CTLS, ACCEPTS, CLOSES, SETSOCKOPTS, GETSOCKOPTS, GETSOCKNAMES, GETPEERNAMES,
    SHUTDOWNS, IOCTLS, FCNTLS, TIMER_SETTINGS, ALLOCATIONS, KINDS
};

static const char *const names[KINDS + 1] = {
    "reads", "writes", "waits", "epoll_ctls", "accepts", "closes", "setsockopts", "getsockopts", "getsocknames",
    "getpeernames", "shutdowns", "ioctls", "fcntls", "timer_settings", "allocations", NULL
};

static atomic_long counters[KINDS];
static long seen[LOOKS][KINDS];
static int looks;

static void count(enum kind kind) { atomic_fetch_add_explicit(&counters[kind], 1, memory_order_relaxed); }

/* --- for the program that is counted ---------------------------------------------------------------------------- */

/* Keep a copy of every counter. */
void counting_look(void)
{
    if (looks == LOOKS)
        abort();
    for (int i = 0; i < KINDS; i++)
        seen[looks][i] = atomic_load_explicit(&counters[i], memory_order_relaxed);
    looks++;
}

/* The copy that look number `look` made of counter `kind`. */
long counting_seen(int look, int kind) { return seen[look][kind]; }

/* What counter `kind` counts; NULL past the last. */
const char *counting_name(int kind) { return names[kind]; }

/* --- the gate --------------------------------------------------------------------------------------------------- */

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gate_changed = PTHREAD_COND_INITIALIZER;
static int closed, waiting;

static void change(int *what, int by)
{
    pthread_mutex_lock(&gate);
    *what += by;
    pthread_cond_broadcast(&gate_changed);
    pthread_mutex_unlock(&gate);
}

/* Let no wait for events return until the gate is opened. */
void counting_close_gate(void) { change(&closed, 1); }

void counting_open_gate(void) { change(&closed, -1); }

/* Return once a thread is waiting for events. */
void counting_await_sleeper(void)
{
    pthread_mutex_lock(&gate);
    while (waiting == 0)
        pthread_cond_wait(&gate_changed, &gate);
    pthread_mutex_unlock(&gate);
}

static void enter_wait(void)
{
    count(WAITS);
    change(&waiting, 1);
}

static void leave_wait(void)
{
    pthread_mutex_lock(&gate);
    while (closed > 0)
        pthread_cond_wait(&gate_changed, &gate);
    waiting--;
    pthread_mutex_unlock(&gate);
}

/* --- the counted functions -------------------------------------------------------------------------------------- */

#define NEXT(result, name, parameters) \
    static result (*_Atomic next) parameters; \
    if (next == NULL) \
        next = (result (*) parameters)dlsym(RTLD_NEXT, #name)

#define COUNTED(kind, result, name, parameters, arguments) \
    result name parameters \
    { \
        NEXT(result, name, parameters); \
        count(kind); \
        return next arguments; \
    }

#define WAITED(result, name, parameters, arguments) \
    result name parameters \
    { \
        NEXT(result, name, parameters); \
        enter_wait(); \
        result answer = next arguments; /* errno survives what follows: neither locks nor conditions set it */ \
        leave_wait(); \
        return answer; \
    }

COUNTED(READS, ssize_t, read, (int fd, void *into, size_t n), (fd, into, n))
COUNTED(READS, ssize_t, readv, (int fd, const struct iovec *into, int n), (fd, into, n))
COUNTED(READS, ssize_t, recv, (int fd, void *into, size_t n, int flags), (fd, into, n, flags))
COUNTED(READS, ssize_t, recvfrom,
        (int fd, void *restrict into, size_t n, int flags, struct sockaddr *restrict from, socklen_t *restrict size),
        (fd, into, n, flags, from, size))
COUNTED(READS, ssize_t, recvmsg, (int fd, struct msghdr *into, int flags), (fd, into, flags))
/* What programs built with _FORTIFY_SOURCE call. */
COUNTED(READS, ssize_t, __read_chk, (int fd, void *into, size_t n, size_t room), (fd, into, n, room))
COUNTED(READS, ssize_t, __recv_chk, (int fd, void *into, size_t n, size_t room, int flags), (fd, into, n, room, flags))

COUNTED(WRITES, ssize_t, write, (int fd, const void *data, size_t n), (fd, data, n))
COUNTED(WRITES, ssize_t, writev, (int fd, const struct iovec *data, int n), (fd, data, n))
COUNTED(WRITES, ssize_t, send, (int fd, const void *data, size_t n, int flags), (fd, data, n, flags))
COUNTED(WRITES, ssize_t, sendto,
        (int fd, const void *data, size_t n, int flags, const struct sockaddr *to, socklen_t size),
        (fd, data, n, flags, to, size))
COUNTED(WRITES, ssize_t, sendmsg, (int fd, const struct msghdr *data, int flags), (fd, data, flags))
COUNTED(WRITES, int, eventfd_write, (int fd, eventfd_t value), (fd, value))

WAITED(int, epoll_wait, (int fd, struct epoll_event *events, int n, int timeout), (fd, events, n, timeout))
WAITED(int, epoll_pwait, (int fd, struct epoll_event *events, int n, int timeout, const sigset_t *mask),
       (fd, events, n, timeout, mask))
WAITED(int, poll, (struct pollfd *fds, nfds_t n, int timeout), (fds, n, timeout))
WAITED(int, __poll_chk, (struct pollfd *fds, nfds_t n, int timeout, size_t room), (fds, n, timeout, room))

COUNTED(EPOLL_CTLS, int, epoll_ctl, (int epoll, int op, int fd, struct epoll_event *event), (epoll, op, fd, event))
COUNTED(ACCEPTS, int, accept, (int fd, struct sockaddr *restrict from, socklen_t *restrict size), (fd, from, size))
COUNTED(ACCEPTS, int, accept4, (int fd, struct sockaddr *restrict from, socklen_t *restrict size, int flags),
        (fd, from, size, flags))
COUNTED(CLOSES, int, close, (int fd), (fd))
COUNTED(SETSOCKOPTS, int, setsockopt, (int fd, int level, int option, const void *value, socklen_t size),
        (fd, level, option, value, size))
COUNTED(GETSOCKOPTS, int, getsockopt, (int fd, int level, int option, void *restrict value, socklen_t *restrict size),
        (fd, level, option, value, size))
COUNTED(GETSOCKNAMES, int, getsockname, (int fd, struct sockaddr *restrict name, socklen_t *restrict size),
        (fd, name, size))
COUNTED(GETPEERNAMES, int, getpeername, (int fd, struct sockaddr *restrict name, socklen_t *restrict size),
        (fd, name, size))
COUNTED(SHUTDOWNS, int, shutdown, (int fd, int how), (fd, how))
COUNTED(TIMER_SETTINGS, int, timerfd_settime,
        (int fd, int flags, const struct itimerspec *when, struct itimerspec *was), (fd, flags, when, was))

/* Whatever the third argument is, it travels as a pointer would. */
#define COUNTED_VARIADIC(kind, name, operation) \
    int name(int fd, operation what, ...) \
    { \
        NEXT(int, name, (int, operation, ...)); \
        va_list rest; \
        va_start(rest, what); \
        void *argument = va_arg(rest, void *); \
        va_end(rest); \
        count(kind); \
        return next(fd, what, argument); \
    }

COUNTED_VARIADIC(IOCTLS, ioctl, unsigned long)
COUNTED_VARIADIC(FCNTLS, fcntl, int)
COUNTED_VARIADIC(FCNTLS, fcntl64, int)

/* glibc's own names: dlsym itself allocates, so it can't be asked for these. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *memory, size_t size);

void *malloc(size_t size)
{
    count(ALLOCATIONS);
    return __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    count(ALLOCATIONS);
    return __libc_calloc(n, size);
}

void *realloc(void *memory, size_t size)
{
    count(ALLOCATIONS);
    return __libc_realloc(memory, size);
}
