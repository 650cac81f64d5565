cimport cython

from pymuduo cimport _sys
from pymuduo.channel cimport Channel


cdef class TimerQueue


@cython.final
cdef class Timer:
    cdef object __weakref__
    cdef readonly object loop
    cdef TimerQueue _queue
    cdef object _callback
    cdef tuple _args
    cdef long long _when_us
    cdef long long _interval_us
    cdef long long _sequence
    cdef Py_ssize_t _position
    cdef bint _cancelled

    cdef bint _is_before(self, Timer other) noexcept


@cython.final
cdef class TimerQueue:
    cdef object _loop
    cdef readonly long thread_id
    cdef list _heap
    cdef long long _next_sequence
    cdef long long _armed_us
    cdef readonly int fd
    cdef Channel _channel
    cdef readonly bint needs_arming
    cdef readonly bint has_expired

    @cython.locals(timer=Timer)
    cpdef object close(self)
    cpdef object add(self, Timer timer)
    cpdef object cancel(self, Timer timer)
    @cython.locals(first=Timer, result=int)
    cpdef object arm(self)
    @cython.locals(timer=Timer, now=cython.longlong, limit=cython.longlong)
    cpdef object run_expired(self)
    @cython.locals(behind=cython.longlong)
    cdef object _repeat(self, Timer timer)
    @cython.locals(timer=Timer, last=Timer)
    cdef Timer _take(self, Py_ssize_t at)
    @cython.locals(timer=Timer, parent=Timer, up=Py_ssize_t)
    cdef object _sift_up(self, Py_ssize_t at)
    @cython.locals(timer=Timer, child=Timer, other=Timer, down=Py_ssize_t, count=Py_ssize_t)
    cdef object _sift_down(self, Py_ssize_t at)


@cython.locals(timer=Timer)
cpdef Timer new_timer(
    object loop, TimerQueue queue, object callback, tuple args, long long when_us, long long interval_us)
