# The C face of _sys.pyx: what the compiled modules call without going through Python.

cimport cython

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        unsigned int events
        epoll_data_t data


# What two threads touch. Atomic in every build: order matters. A shared_count is written by one thread and read by any;
# the interpreter's lock orders that where there is one, so only a free-threaded build pays for it.
cdef extern from *:
    """
    #include <stdatomic.h>
    #ifdef Py_GIL_DISABLED
    typedef _Atomic(long long) pymuduo_shared_count;
    #else
    typedef long long pymuduo_shared_count;
    #endif
    """
    ctypedef int atomic_int
    ctypedef long atomic_long
    ctypedef long long shared_count "pymuduo_shared_count"


cdef class ReadableRegion:
    cdef bytearray _data
    cdef Py_ssize_t _begin
    cdef Py_ssize_t _end
    cdef Py_ssize_t _looked
    cdef Py_ssize_t _awaited


@cython.final
cdef class Epoll:
    cdef int _fd
    cdef epoll_event *_events
    cdef readonly int capacity
    cdef bint _is_busy
    cdef long long _released_ms
    cdef int _wait(self, int timeout_ms) noexcept nogil
    cpdef int control(self, int op, int fd, unsigned int events) noexcept
    cpdef int wait(self, int timeout_ms) except? -4
    cpdef int fd_at(self, int i) noexcept
    cpdef unsigned int events_at(self, int i) noexcept
    cpdef object grow(self)


cpdef long thread_id() noexcept
cpdef object full_fence()
cpdef tuple functor(object callback, tuple args)
cpdef object call(tuple functor)
cpdef long long monotonic_us() noexcept
cpdef long long coarse_ms() noexcept
cpdef long long realtime_us() noexcept

cpdef bint is_exported(bytearray data) noexcept
cpdef object store(bytearray data, Py_ssize_t at, object source, Py_ssize_t count)
cpdef bytes load(bytearray data, Py_ssize_t at, Py_ssize_t count)
cpdef object move(bytearray data, Py_ssize_t to, Py_ssize_t at, Py_ssize_t count)
cpdef object copy(bytearray into, Py_ssize_t to, bytearray data, Py_ssize_t at, Py_ssize_t count)
cpdef object store_int(bytearray data, Py_ssize_t at, int width, long long value)
cpdef long long load_int(bytearray data, Py_ssize_t at, int width) except? -1
cpdef Py_ssize_t find(bytearray data, Py_ssize_t begin, Py_ssize_t end, bytes what) except? -2

cpdef Py_ssize_t take_delimited(
    bytearray data, Py_ssize_t begin, Py_ssize_t start, Py_ssize_t end, bytes delimiter, Py_ssize_t limit,
    list taken) except -1
cpdef Py_ssize_t take_prefixed(
    bytearray data, Py_ssize_t begin, Py_ssize_t end, int width, bint is_big, Py_ssize_t limit, list taken) except -1
cpdef Py_ssize_t take_requests(ReadableRegion region, Py_ssize_t limit, Py_ssize_t most, list taken) except -1
cpdef Py_ssize_t take_commands(
    ReadableRegion region, dict blocks, Py_ssize_t line_limit, Py_ssize_t most, Py_ssize_t limit,
    list taken) except -1
cpdef bytes prefixed(bytes message, int width, Py_ssize_t limit, bint is_big)
cpdef bytes join_prefixed(list messages, int width, Py_ssize_t limit, bint is_big)
cpdef bytes delimited(bytes message, bytes delimiter, Py_ssize_t limit)
cpdef bytes join_delimited(list messages, bytes delimiter, Py_ssize_t limit)

cpdef Py_ssize_t read_into(int fd, bytearray into, Py_ssize_t begin, Py_ssize_t end) noexcept
cpdef Py_ssize_t read_into_two(
    int fd, bytearray first, Py_ssize_t begin, Py_ssize_t end, bytearray second) noexcept
cpdef Py_ssize_t write_bytes(int fd, bytes chunk, Py_ssize_t offset) noexcept
cpdef Py_ssize_t write_part(int fd, bytearray data, Py_ssize_t begin, Py_ssize_t end) noexcept
cpdef Py_ssize_t write_parts(
    int fd, bytearray data, Py_ssize_t begin, Py_ssize_t end, list chunks, Py_ssize_t first,
    Py_ssize_t offset) except? -1

cpdef int set_option(int fd, int level, int option, int value) noexcept
cpdef int take_error(int fd) noexcept
cpdef int unread_bytes(int fd) noexcept
cpdef int shutdown_write(int fd) noexcept
cpdef int close(int fd) noexcept
cpdef object accept(int fd)
cpdef object local_address(int fd)
cpdef object peer_address(int fd)

cpdef int make_eventfd() noexcept
cpdef int signal_eventfd(int fd) noexcept
cpdef int make_timerfd() noexcept
cpdef int arm_timerfd(int fd, long long delay_us) noexcept
cpdef int drain_counter(int fd) noexcept
