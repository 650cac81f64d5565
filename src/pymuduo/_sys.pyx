"""System calls and raw bytes, compiled: a call in, a result or ``-errno`` out, and no policy.

``_sys.py`` holds the same functions over the standard library; this is the only module with two bodies. Any
thread may call these functions; what they are given belongs to the caller.

The interpreter lock is let go around calls that may block (``Epoll.wait``, unless the loop is busy) or that move
much data (a write of more than ``_RELEASE_BYTES``). A non-blocking read or write of a few bytes costs less than
giving the lock away and waiting to get it back: with a busy second thread that wait is a whole switch interval.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.tuple cimport PyTuple_GET_SIZE, PyTuple_New, PyTuple_SET_ITEM
from libc.errno cimport EFAULT, EINVAL, ENOTSOCK, errno
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy, memmove
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, clockid_t, itimerspec, timespec

cdef extern from "Python.h":
    ctypedef struct PyTupleObject:
        PyObject *ob_item[1]
    object PyObject_Vectorcall(PyObject *callable, PyObject **args, size_t count, PyObject *names)
    PyObject *PyTuple_GET_ITEM(object, Py_ssize_t)
    ctypedef struct PyByteArrayObject:
        Py_ssize_t ob_exports
    str PyUnicode_FromString(const char *)

cdef extern from "<stdatomic.h>" nogil:
    enum memory_order:
        memory_order_seq_cst
    void atomic_thread_fence(memory_order order)

cdef extern from "<time.h>" nogil:
    clockid_t CLOCK_MONOTONIC_COARSE

cdef extern from "<pthread.h>" nogil:
    unsigned long pthread_self()

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <string.h>
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    #include <sys/ioctl.h>
    #include <sys/socket.h>
    #include <sys/timerfd.h>
    #include <sys/uio.h>
    #include <sys/un.h>
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <unistd.h>
    """
    void *memmem(const void *haystack, size_t n, const void *needle, size_t m)
    size_t strnlen(const char *text, size_t limit)

    int EPOLL_CLOEXEC
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)

    int EFD_NONBLOCK, EFD_CLOEXEC
    int c_eventfd "eventfd"(unsigned int initval, int flags)
    int TFD_NONBLOCK, TFD_CLOEXEC
    int timerfd_create(int clockid, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec *new, itimerspec *old)

    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    ssize_t c_recv "recv"(int fd, void *into, size_t n, int flags)
    ssize_t c_read "read"(int fd, void *into, size_t n)
    ssize_t readv(int fd, const iovec *iov, int n)
    ssize_t c_write "write"(int fd, const void *data, size_t n)
    ssize_t c_send "send"(int fd, const void *data, size_t n, int flags)
    ssize_t sendmsg(int fd, const msghdr *msg, int flags)
    int c_close "close"(int fd)
    int ioctl(int fd, unsigned long request, int *value)
    unsigned long FIONREAD
    int MSG_NOSIGNAL

    ctypedef unsigned int socklen_t
    struct sockaddr:
        unsigned short sa_family
    struct in_addr:
        pass
    struct sockaddr_in:
        unsigned short sin_port
        in_addr sin_addr
    struct in6_addr:
        pass
    struct sockaddr_in6:
        unsigned short sin6_port
        unsigned int sin6_flowinfo
        in6_addr sin6_addr
        unsigned int sin6_scope_id
    struct sockaddr_un:
        char sun_path[108]
    int AF_INET, AF_INET6, AF_UNIX, SOL_SOCKET, SO_ERROR, SHUT_WR, SOCK_NONBLOCK, SOCK_CLOEXEC
    int accept4(int fd, sockaddr *address, socklen_t *n, int flags)
    int getsockname(int fd, sockaddr *address, socklen_t *n)
    int getpeername(int fd, sockaddr *address, socklen_t *n)
    int c_shutdown "shutdown"(int fd, int how)
    int c_setsockopt "setsockopt"(int fd, int level, int name, const void *value, socklen_t n)
    int c_getsockopt "getsockopt"(int fd, int level, int name, void *value, socklen_t *n)
    const char *inet_ntop(int family, const void *source, char *into, socklen_t n)
    unsigned short ntohs(unsigned short value)

cdef enum:
    _MAX_IOVECS = 64         # pieces in one system call
    _RELEASE_BYTES = 32768   # from here the kernel's copy is longer than giving the lock away
    _KEEP_LOCK_MS = 8        # more than the interpreter's switch interval, 5 ms
    _ADDRESS_BYTES = 128     # sizeof(struct sockaddr_storage)
    _TEXT_BYTES = 64         # room for INET6_ADDRSTRLEN


# --- clocks and threads ---------------------------------------------------------------------------------------

cpdef long thread_id() noexcept:
    return <long>pthread_self()  # what threading.get_ident() returns on Linux


cpdef object full_fence():
    atomic_thread_fence(memory_order_seq_cst)


cpdef long long monotonic_us() noexcept:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <long long>t.tv_sec * 1000000 + t.tv_nsec // 1000


cpdef long long coarse_ms() noexcept:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t)
    return <long long>t.tv_sec * 1000 + t.tv_nsec // 1000000


cpdef long long realtime_us() noexcept:
    cdef timespec t
    clock_gettime(CLOCK_REALTIME, &t)
    return <long long>t.tv_sec * 1000000 + t.tv_nsec // 1000


# --- calls that are made later ----------------------------------------------------------------------------------

cpdef tuple functor(object callback, tuple args):
    cdef Py_ssize_t n = PyTuple_GET_SIZE(args), i
    cdef tuple made = PyTuple_New(n + 1)
    Py_INCREF(callback)
    PyTuple_SET_ITEM(made, 0, callback)
    for i in range(n):
        Py_INCREF(args[i])
        PyTuple_SET_ITEM(made, i + 1, args[i])
    return made


cpdef object call(tuple functor):
    if functor is None or PyTuple_GET_SIZE(functor) == 0:
        raise TypeError("a functor holds at least what is to be called")
    return PyObject_Vectorcall(
        PyTuple_GET_ITEM(functor, 0), (<PyTupleObject *>functor).ob_item + 1, PyTuple_GET_SIZE(functor) - 1, NULL)


# --- bytes in a bytearray: the caller has checked the bounds --------------------------------------------------

cdef class ReadableRegion:
    """``_data[_begin:_end]`` as a read-only buffer, and how far it has been looked through: the base of ``Buffer``."""

    def __getbuffer__(self, Py_buffer *view, int flags):
        if flags & PyBUF_WRITABLE:
            view.obj = None
            raise BufferError("a Buffer exports its readable bytes read-only")
        Py_DECREF(None)  # Cython's, which stands in view.obj until it is written over
        # The view's owner is the bytearray: it stays valid whatever becomes of this object.
        PyObject_GetBuffer(self._data, view, flags)
        view.buf = <char *>view.buf + self._begin
        view.len = self._end - self._begin
        view.readonly = 1


cdef int _check(bytearray data, Py_ssize_t at, Py_ssize_t count) except -1:
    # A bytearray can be resized by whoever gets hold of it (a memoryview's obj), so offsets are never trusted.
    if at < 0 or count < 0 or at > PyByteArray_GET_SIZE(data) - count:
        raise BufferError(f"{count} bytes at {at} are outside of {PyByteArray_GET_SIZE(data)} bytes of memory")
    return 0


cpdef bint is_exported(bytearray data) noexcept:
    return (<PyByteArrayObject *>data).ob_exports > 0


cpdef object store(bytearray data, Py_ssize_t at, object source, Py_ssize_t count):
    cdef const unsigned char[::1] view
    _check(data, at, count)
    if len(source) != count:
        raise BufferError(f"{len(source)} bytes to store where {count} were announced")
    if count == 0:
        return None
    if type(source) is bytes:
        memcpy(PyByteArray_AS_STRING(data) + at, PyBytes_AS_STRING(source), count)
    else:
        view = source
        memcpy(PyByteArray_AS_STRING(data) + at, &view[0], count)


cpdef bytes load(bytearray data, Py_ssize_t at, Py_ssize_t count):
    _check(data, at, count)
    return PyBytes_FromStringAndSize(PyByteArray_AS_STRING(data) + at, count)


cpdef object move(bytearray data, Py_ssize_t to, Py_ssize_t at, Py_ssize_t count):
    _check(data, at, count)
    _check(data, to, count)
    memmove(PyByteArray_AS_STRING(data) + to, PyByteArray_AS_STRING(data) + at, count)


cpdef object copy(bytearray into, Py_ssize_t to, bytearray data, Py_ssize_t at, Py_ssize_t count):
    _check(data, at, count)
    _check(into, to, count)
    memcpy(PyByteArray_AS_STRING(into) + to, PyByteArray_AS_STRING(data) + at, count)


cpdef object store_int(bytearray data, Py_ssize_t at, int width, long long value):
    cdef uint8_t *p = <uint8_t *>PyByteArray_AS_STRING(data) + at
    cdef int i
    _check(data, at, width)
    for i in range(width - 1, -1, -1):
        p[i] = <uint8_t>(value & 0xFF)
        value >>= 8


cpdef long long load_int(bytearray data, Py_ssize_t at, int width) except? -1:
    cdef uint8_t *p = <uint8_t *>PyByteArray_AS_STRING(data) + at
    cdef uint64_t value = 0
    cdef int i
    _check(data, at, width)
    for i in range(width):
        value = (value << 8) | p[i]
    if width < 8 and p[0] & 0x80:
        value |= (<uint64_t>0xFFFFFFFFFFFFFFFFULL) << (8 * width)
    return <long long>value


cpdef Py_ssize_t find(bytearray data, Py_ssize_t begin, Py_ssize_t end, bytes what) except? -2:
    cdef char *base = PyByteArray_AS_STRING(data)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(what)
    cdef char *found
    _check(data, begin, end - begin)
    if n == 0:
        return begin
    if end - begin < n:
        return -1
    if n == 1:
        found = <char *>memchr(base + begin, (<unsigned char *>PyBytes_AS_STRING(what))[0], end - begin)
    else:
        found = <char *>memmem(base + begin, end - begin, PyBytes_AS_STRING(what), n)
    return -1 if found == NULL else found - base


# --- messages in a bytearray ------------------------------------------------------------------------------------

cpdef Py_ssize_t take_delimited(
        bytearray data, Py_ssize_t begin, Py_ssize_t start, Py_ssize_t end, bytes delimiter, Py_ssize_t limit,
        list taken) except -1:
    cdef char *base = PyByteArray_AS_STRING(data)
    cdef const char *what = PyBytes_AS_STRING(delimiter)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(delimiter)
    cdef char *found
    _check(data, begin, start - begin)
    _check(data, start, end - start)
    if n == 0:
        raise ValueError("an empty delimiter ends nothing")
    while start < end:
        if n == 1:
            found = <char *>memchr(base + start, (<const unsigned char *>what)[0], end - start)
        else:
            found = <char *>memmem(base + start, end - start, what, n)
        if found == NULL or found - base - begin > limit:
            break
        taken.append(PyBytes_FromStringAndSize(base + begin, found - base - begin))
        begin = start = found - base + n
    return begin


cdef uint64_t _load_length(const uint8_t *at, int width, bint is_big) noexcept:
    cdef uint64_t value = 0
    cdef int i
    for i in range(width):
        value = (value << 8) | at[i if is_big else width - 1 - i]
    return value


cpdef Py_ssize_t take_prefixed(
        bytearray data, Py_ssize_t begin, Py_ssize_t end, int width, bint is_big, Py_ssize_t limit,
        list taken) except -1:
    cdef char *base = PyByteArray_AS_STRING(data)
    cdef uint64_t length
    _check(data, begin, end - begin)
    if not 1 <= width <= 8:
        raise ValueError(f"a length of {width} bytes: 1 to 8 are possible")
    if limit < 0:
        return begin
    while end - begin >= width:
        length = _load_length(<const uint8_t *>base + begin, width, is_big)
        if length > <uint64_t>limit or length > <uint64_t>(end - begin - width):
            break
        taken.append(PyBytes_FromStringAndSize(base + begin + width, <Py_ssize_t>length))
        begin += width + <Py_ssize_t>length
    return begin


cdef Py_ssize_t _number(const char *base, Py_ssize_t at, Py_ssize_t end, Py_ssize_t *value) noexcept:
    # Returns where the line after the number begins; -1 if it is not all there, -2 if it is none.
    cdef bint is_negative = at < end and base[at] == c'-'
    cdef Py_ssize_t first
    cdef Py_ssize_t total = 0
    if is_negative:
        at += 1
    first = at
    while at < end and c'0' <= base[at] <= c'9':
        if at - first == 18:
            return -2
        total = total * 10 + (base[at] - c'0')
        at += 1
    if at == end:
        return -1
    if at == first or base[at] != c'\r' or (at + 1 < end and base[at + 1] != c'\n'):
        return -2
    value[0] = -total if is_negative else total
    return at + 2 if at + 1 < end else -1


cdef void _remember(ReadableRegion region, Py_ssize_t begin, Py_ssize_t looked, Py_ssize_t awaited) noexcept:
    if begin == region._begin:
        region._looked = looked
        region._awaited = awaited


cdef Py_ssize_t _pass_words(
        const char *base, Py_ssize_t begin, Py_ssize_t end, Py_ssize_t limit, Py_ssize_t *at,
        Py_ssize_t *left) noexcept:
    # Goes behind each bulk string that is all there, and says how many are left; less than 0 if one is malformed.
    cdef Py_ssize_t after, size = 0
    while left[0] > 0 and at[0] < end:
        if base[at[0]] != c'$':
            return -3
        after = _number(base, at[0] + 1, end, &size)
        if after == -1:
            break
        if after == -2 or size < 0 or size > limit - (after + 2 - begin):
            return -4
        if size + 2 > end - after:
            break
        after += size + 2
        if base[after - 2] != c'\r' or base[after - 1] != c'\n':
            return -5
        at[0] = after
        left[0] -= 1
    return 0


cdef object _refuse(Py_ssize_t what, unsigned char found):
    if what == -3:
        raise ValueError(f"expected '$', got {chr(found)!r}")
    raise ValueError({-2: "invalid multibulk length", -4: "invalid bulk length"}.get(
        what, "a bulk string longer than it said"))


cpdef Py_ssize_t take_requests(ReadableRegion region, Py_ssize_t limit, Py_ssize_t most, list taken) except -1:
    cdef char *base = PyByteArray_AS_STRING(region._data)
    cdef Py_ssize_t begin = region._begin, end = region._end, at = begin + region._looked, left = region._awaited
    cdef Py_ssize_t what, word, count = 0, size = 0, i
    cdef list words
    _check(region._data, begin, end - begin)
    while begin < end and base[begin] == c'*':
        what = 0
        if at == begin:
            at = _number(base, begin + 1, end, &left)
            if at == -1:
                break
            if at == -2 or left > most or left > limit // 6:  # a word takes six bytes at least
                what = -2
        if what == 0:
            what = _pass_words(base, begin, end, limit, &at, &left)
        if what < 0:
            if not taken:
                _refuse(what, <unsigned char>base[at] if what == -3 else 0)
            break
        if left > 0:
            _remember(region, begin, at - begin, left)
            break
        word = _number(base, begin + 1, end, &count)
        if count > 0:
            words = []
            for i in range(count):
                word = _number(base, word + 1, end, &size)
                words.append(PyBytes_FromStringAndSize(base + word, size))
                word += size + 2
            taken.append(words)
        begin = at
    return begin


cdef list _words(const char *base, Py_ssize_t at, Py_ssize_t stop, Py_ssize_t most):
    # None: there are more.
    cdef list words = []
    cdef Py_ssize_t word
    while at < stop:
        if base[at] == c' ':
            at += 1
            continue
        if len(words) == most:
            return None
        word = at
        while at < stop and base[at] != c' ':
            at += 1
        words.append(PyBytes_FromStringAndSize(base + word, at - word))
    return words


cdef Py_ssize_t _block_size(dict blocks, list words) except -2:
    # The size of the block that follows a command; -1: none does, or its size is not told.
    cdef object index = blocks.get(words[0]) if words else None
    cdef bytes word
    cdef Py_ssize_t i, at, total = 0
    cdef const char *digits
    if index is None:
        return -1
    i = index
    if i < 0:
        i += len(words)
    if not 0 < i < len(words):
        return -1
    word = words[i]
    digits = PyBytes_AS_STRING(word)
    if not 0 < PyBytes_GET_SIZE(word) <= 18:
        return -1
    for at in range(PyBytes_GET_SIZE(word)):
        if not c'0' <= digits[at] <= c'9':
            return -1
        total = total * 10 + (digits[at] - c'0')
    return total


cpdef Py_ssize_t take_commands(
        ReadableRegion region, dict blocks, Py_ssize_t line_limit, Py_ssize_t most, Py_ssize_t limit,
        list taken) except -1:
    cdef char *base = PyByteArray_AS_STRING(region._data)
    cdef char *found
    cdef Py_ssize_t begin = region._begin, end = region._end, start = begin + region._looked, stop, size, after
    cdef list words
    cdef str violation = None
    _check(region._data, begin, end - begin)
    if start > begin and region._awaited > end - begin:
        return begin
    while begin < end:
        found = <char *>memchr(base + start, 10, end - start)
        stop = end if found == NULL else found - base
        after = stop + 1
        if stop > begin and base[stop - 1] == c'\r':
            stop -= 1
        if stop - begin > line_limit:
            violation = f"a line of more than {line_limit} bytes"
            break
        if found == NULL:
            _remember(region, begin, end - begin, 0)
            break
        words = _words(base, begin, stop, most)
        if words is None:
            violation = f"a line of more than {most} words"
            break
        size = _block_size(blocks, words)
        if size > limit:
            violation = f"a block of {size} bytes, where {limit} are allowed"
            break
        if size >= 0:
            if size + 2 > end - after:
                _remember(region, begin, after - 1 - begin, after + size + 2 - begin)
                break
            if base[after + size] == c'\r' and base[after + size + 1] == c'\n':
                words.append(PyBytes_FromStringAndSize(base + after, size))
            after += size + 2
        taken.append(words)
        begin = start = after
    if violation is not None and not taken:
        raise ValueError(violation)
    return begin


cdef Py_ssize_t _put_prefixed(char *at, bytes message, int width, bint is_big) noexcept:
    cdef Py_ssize_t n = PyBytes_GET_SIZE(message)
    cdef uint64_t length = <uint64_t>n
    cdef int i
    for i in range(width):
        at[width - 1 - i if is_big else i] = <char>(length & 0xFF)
        length >>= 8
    memcpy(at + width, PyBytes_AS_STRING(message), n)
    return width + n


cdef int _check_length(bytes message, Py_ssize_t limit) except -1:
    if PyBytes_GET_SIZE(message) > limit:
        raise ValueError(f"a message has at most {limit} bytes, got {len(message)}")
    return 0


cpdef bytes prefixed(bytes message, int width, Py_ssize_t limit, bint is_big):
    cdef bytes encoded
    if not 1 <= width <= 8:
        raise ValueError(f"a length of {width} bytes: 1 to 8 are possible")
    _check_length(message, limit)
    encoded = PyBytes_FromStringAndSize(NULL, width + PyBytes_GET_SIZE(message))
    _put_prefixed(PyBytes_AS_STRING(encoded), message, width, is_big)
    return encoded


cpdef bytes join_prefixed(list messages, int width, Py_ssize_t limit, bint is_big):
    cdef Py_ssize_t total = 0
    cdef bytes message, joined
    cdef char *at
    if not 1 <= width <= 8:
        raise ValueError(f"a length of {width} bytes: 1 to 8 are possible")
    for message in messages:
        _check_length(message, limit)
        total += width + PyBytes_GET_SIZE(message)
    joined = PyBytes_FromStringAndSize(NULL, total)
    at = PyBytes_AS_STRING(joined)
    for message in messages:
        at += _put_prefixed(at, message, width, is_big)
    return joined


cdef Py_ssize_t _put_delimited(char *at, bytes message, bytes delimiter) except -1:
    cdef Py_ssize_t n = PyBytes_GET_SIZE(message), width = PyBytes_GET_SIZE(delimiter)
    cdef char *found
    memcpy(at, PyBytes_AS_STRING(message), n)
    memcpy(at + n, PyBytes_AS_STRING(delimiter), width)
    # Searched together with its end, because a message may close with the first part of a delimiter.
    if width == 1:
        found = <char *>memchr(at, (<const unsigned char *>PyBytes_AS_STRING(delimiter))[0], n + 1)
    else:
        found = <char *>memmem(at, n + width, PyBytes_AS_STRING(delimiter), width)
    if found != at + n:
        raise ValueError(f"a message must not hold its delimiter {delimiter!r}, got {message!r:.80}")
    return n + width


cpdef bytes delimited(bytes message, bytes delimiter, Py_ssize_t limit):
    cdef bytes encoded
    if PyBytes_GET_SIZE(delimiter) == 0:
        raise ValueError("an empty delimiter ends nothing")
    _check_length(message, limit)
    encoded = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(message) + PyBytes_GET_SIZE(delimiter))
    _put_delimited(PyBytes_AS_STRING(encoded), message, delimiter)
    return encoded


cpdef bytes join_delimited(list messages, bytes delimiter, Py_ssize_t limit):
    cdef Py_ssize_t total = 0
    cdef bytes message, joined
    cdef char *at
    if PyBytes_GET_SIZE(delimiter) == 0:
        raise ValueError("an empty delimiter ends nothing")
    for message in messages:
        _check_length(message, limit)
        total += PyBytes_GET_SIZE(message) + PyBytes_GET_SIZE(delimiter)
    joined = PyBytes_FromStringAndSize(NULL, total)
    at = PyBytes_AS_STRING(joined)
    for message in messages:
        at += _put_delimited(at, message, delimiter)
    return joined


# --- reading and writing ---------------------------------------------------------------------------------------

cpdef Py_ssize_t read_into(int fd, bytearray into, Py_ssize_t begin, Py_ssize_t end) noexcept:
    cdef ssize_t n
    if begin < 0 or end < begin or end > PyByteArray_GET_SIZE(into):
        return -EFAULT
    # recv has a shorter way through the kernel than read, and every descriptor but a few is a socket.
    n = c_recv(fd, PyByteArray_AS_STRING(into) + begin, end - begin, 0)
    if n < 0 and errno == ENOTSOCK:
        n = c_read(fd, PyByteArray_AS_STRING(into) + begin, end - begin)
    return n if n >= 0 else -errno


cpdef Py_ssize_t read_into_two(
        int fd, bytearray first, Py_ssize_t begin, Py_ssize_t end, bytearray second) noexcept:
    cdef iovec iov[2]
    cdef ssize_t n
    if begin < 0 or end < begin or end > PyByteArray_GET_SIZE(first):
        return -EFAULT
    iov[0].iov_base = PyByteArray_AS_STRING(first) + begin
    iov[0].iov_len = end - begin
    iov[1].iov_base = PyByteArray_AS_STRING(second)
    iov[1].iov_len = len(second)
    n = readv(fd, iov, 2)
    return n if n >= 0 else -errno


cdef ssize_t _write(int fd, const char *data, Py_ssize_t n) noexcept:
    # MSG_NOSIGNAL: a program that gave SIGPIPE back its default must not die of a peer that left.
    cdef ssize_t sent
    if n > _RELEASE_BYTES:
        with nogil:
            sent = c_send(fd, data, n, MSG_NOSIGNAL)
            if sent < 0:
                sent = -errno
        return sent
    sent = c_send(fd, data, n, MSG_NOSIGNAL)
    return sent if sent >= 0 else -errno


cpdef Py_ssize_t write_bytes(int fd, bytes chunk, Py_ssize_t offset) noexcept:
    if offset < 0 or offset > PyBytes_GET_SIZE(chunk):
        return -EINVAL
    return _write(fd, PyBytes_AS_STRING(chunk) + offset, PyBytes_GET_SIZE(chunk) - offset)


cpdef Py_ssize_t write_part(int fd, bytearray data, Py_ssize_t begin, Py_ssize_t end) noexcept:
    if begin < 0 or end < begin or end > PyByteArray_GET_SIZE(data):
        return -EINVAL
    return _write(fd, PyByteArray_AS_STRING(data) + begin, end - begin)


cpdef Py_ssize_t write_parts(
        int fd, bytearray data, Py_ssize_t begin, Py_ssize_t end, list chunks, Py_ssize_t first,
        Py_ssize_t offset) except? -1:
    cdef iovec iov[_MAX_IOVECS]
    cdef msghdr message
    cdef Py_ssize_t total = end - begin, i
    cdef int count = 0
    cdef ssize_t sent
    cdef bytes chunk
    if begin < 0 or end < begin or end > PyByteArray_GET_SIZE(data) or first < 0 or offset < 0:
        return -EINVAL
    if end > begin:
        iov[0].iov_base = PyByteArray_AS_STRING(data) + begin
        iov[0].iov_len = end - begin
        count = 1
    for i in range(first, len(chunks)):
        if count == _MAX_IOVECS:
            break
        chunk = chunks[i]
        if offset > PyBytes_GET_SIZE(chunk):
            return -EINVAL
        iov[count].iov_base = PyBytes_AS_STRING(chunk) + offset
        iov[count].iov_len = PyBytes_GET_SIZE(chunk) - offset
        total += iov[count].iov_len
        count += 1
        offset = 0
    # sendmsg is writev with flags.
    _clear(&message)
    message.msg_iov = iov
    message.msg_iovlen = count
    if total > _RELEASE_BYTES:
        with nogil:
            sent = sendmsg(fd, &message, MSG_NOSIGNAL)
            if sent < 0:
                sent = -errno
        return sent
    sent = sendmsg(fd, &message, MSG_NOSIGNAL)
    return sent if sent >= 0 else -errno


cdef void _clear(msghdr *message) noexcept:
    cdef char *p = <char *>message
    cdef size_t i
    for i in range(sizeof(msghdr)):
        p[i] = 0


# --- sockets ---------------------------------------------------------------------------------------------------

cpdef int set_option(int fd, int level, int option, int value) noexcept:
    return 0 if c_setsockopt(fd, level, option, &value, sizeof(value)) == 0 else -errno


cpdef int take_error(int fd) noexcept:
    cdef int value = 0
    cdef socklen_t n = sizeof(value)
    if c_getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &n) < 0:
        return errno
    return value


cpdef int unread_bytes(int fd) noexcept:
    cdef int value = 0
    return value if ioctl(fd, FIONREAD, &value) == 0 else -errno


cpdef int shutdown_write(int fd) noexcept:
    return 0 if c_shutdown(fd, SHUT_WR) == 0 else -errno


cpdef int close(int fd) noexcept:
    return 0 if c_close(fd) == 0 else -errno


cdef str _dotted(const uint8_t *number):
    """Four numbers between dots; inet_ntop goes through printf, and takes ten times as long."""
    cdef char text[16]
    cdef int at = 0, i
    cdef uint8_t n
    for i in range(4):
        n = number[i]
        if n >= 100:
            text[at] = 48 + n // 100
            at += 1
        if n >= 10:
            text[at] = 48 + n // 10 % 10
            at += 1
        text[at] = 48 + n % 10
        text[at + 1] = 46
        at += 2
    text[at - 1] = 0
    return PyUnicode_FromString(text)


cdef bytes _unix_name(sockaddr_un *address, Py_ssize_t count):
    """What is in sun_path: *count* bytes, if it is an abstract name; a path ends at its zero."""
    if count <= 0:
        return b""
    if address.sun_path[0]:
        count = strnlen(address.sun_path, count)
    return PyBytes_FromStringAndSize(address.sun_path, count)


cdef object _address(sockaddr *address, socklen_t size):
    cdef char text[_TEXT_BYTES]
    cdef sockaddr_un *un = <sockaddr_un *>address
    cdef sockaddr_in *v4 = <sockaddr_in *>address
    cdef sockaddr_in6 *v6 = <sockaddr_in6 *>address
    if address.sa_family == AF_INET:
        return _dotted(<const uint8_t *>&v4.sin_addr), <int>ntohs(v4.sin_port), 0
    if address.sa_family == AF_INET6:
        inet_ntop(AF_INET6, &v6.sin6_addr, text, _TEXT_BYTES)
        return PyUnicode_FromString(text), <int>ntohs(v6.sin6_port), <long long>v6.sin6_scope_id
    return _unix_name(un, <Py_ssize_t>size - (un.sun_path - <char *>un)) if address.sa_family == AF_UNIX else b""


cpdef object accept(int fd):
    cdef char storage[_ADDRESS_BYTES]
    cdef socklen_t n = _ADDRESS_BYTES
    cdef int new_fd = accept4(fd, <sockaddr *>storage, &n, SOCK_NONBLOCK | SOCK_CLOEXEC)
    if new_fd < 0:
        return -errno, None
    return new_fd, _address(<sockaddr *>storage, n)


cpdef object local_address(int fd):
    cdef char storage[_ADDRESS_BYTES]
    cdef socklen_t n = _ADDRESS_BYTES
    if getsockname(fd, <sockaddr *>storage, &n) < 0:
        return None
    return _address(<sockaddr *>storage, n)


cpdef object peer_address(int fd):
    cdef char storage[_ADDRESS_BYTES]
    cdef socklen_t n = _ADDRESS_BYTES
    if getpeername(fd, <sockaddr *>storage, &n) < 0:
        return None
    return _address(<sockaddr *>storage, n)


# --- what a loop waits with ------------------------------------------------------------------------------------

cdef class Epoll:
    """An epoll descriptor and the array its events are returned in."""

    def __cinit__(self, int capacity):
        self._fd = -1
        self._events = <epoll_event *>malloc(capacity * sizeof(epoll_event))
        if self._events == NULL:
            raise MemoryError()
        self.capacity = capacity
        self._fd = epoll_create1(EPOLL_CLOEXEC)
        if self._fd < 0:
            PyErr_SetFromErrno(OSError)

    def __dealloc__(self):
        if self._fd >= 0:
            c_close(self._fd)
        free(self._events)

    def fileno(self):
        return self._fd

    def close(self):
        if self._fd >= 0:
            c_close(self._fd)
            self._fd = -1

    cpdef int control(self, int op, int fd, unsigned int events) noexcept:
        cdef epoll_event event
        event.events = events
        event.data.fd = fd
        return 0 if epoll_ctl(self._fd, op, fd, &event) == 0 else -errno

    cpdef int wait(self, int timeout_ms) except? -4:
        # A busy loop keeps the interpreter lock for a while, as any busy thread does: another one asks for it after
        # a switch interval, and gets it. Were it let go at every poll and taken back at once, the other one would be
        # woken up in vain each time and begin to wait anew; seen: half a second.
        cdef int n = 0
        cdef long long now = coarse_ms()
        if self._is_busy and timeout_ms != 0 and now - self._released_ms < _KEEP_LOCK_MS:
            n = self._wait(0)
        if n == 0:
            with nogil:
                n = self._wait(timeout_ms)
            self._released_ms = now
        self._is_busy = n > 1
        PyErr_CheckSignals()  # in the main thread: Ctrl-C becomes KeyboardInterrupt here
        return n

    cdef int _wait(self, int timeout_ms) noexcept nogil:
        cdef int n = epoll_wait(self._fd, self._events, self.capacity, timeout_ms)
        return n if n >= 0 else -errno

    cpdef int fd_at(self, int i) noexcept:
        return self._events[i].data.fd

    cpdef unsigned int events_at(self, int i) noexcept:
        return self._events[i].events

    cpdef object grow(self):
        cdef epoll_event *events = <epoll_event *>malloc(2 * self.capacity * sizeof(epoll_event))
        if events == NULL:
            raise MemoryError()
        free(self._events)
        self._events = events
        self.capacity *= 2


cpdef int make_eventfd() noexcept:
    cdef int fd = c_eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
    return fd if fd >= 0 else -errno


cpdef int signal_eventfd(int fd) noexcept:
    cdef uint64_t one = 1
    return 0 if c_write(fd, &one, sizeof(one)) == sizeof(one) else -errno


cpdef int make_timerfd() noexcept:
    cdef int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
    return fd if fd >= 0 else -errno


cpdef int arm_timerfd(int fd, long long delay_us) noexcept:
    cdef itimerspec when
    if delay_us < 1:
        delay_us = 1  # zero would disarm it
    when.it_interval.tv_sec = 0
    when.it_interval.tv_nsec = 0
    when.it_value.tv_sec = delay_us // 1000000
    when.it_value.tv_nsec = (delay_us % 1000000) * 1000
    return 0 if timerfd_settime(fd, 0, &when, NULL) == 0 else -errno


cpdef int drain_counter(int fd) noexcept:
    cdef uint64_t count
    return 0 if c_read(fd, &count, sizeof(count)) == sizeof(count) else -errno
