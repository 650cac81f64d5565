cimport cython

from pymuduo cimport _sys, timer_queue, timestamp
from pymuduo._sys cimport atomic_int, atomic_long, shared_count
from pymuduo.channel cimport BaseChannel, Channel, ChannelHost
from pymuduo.poller.base cimport Poller
from pymuduo.timer_queue cimport Timer, TimerQueue
from pymuduo.timestamp cimport Timestamp

cdef double _FOREVER_S
cdef Py_ssize_t _MAX_FUNCTORS


cdef class Flushable:
    cdef bint _flush_queued
    cpdef object flush(self)
    cpdef object force_close(self)


cdef class EventLoop(ChannelHost):
    cdef object __weakref__
    cdef readonly str name
    cdef public object exception_handler
    cdef public object context
    cdef readonly bytearray read_area
    cdef public object spare_output
    cdef readonly shared_count iteration
    cdef readonly shared_count event_count
    cdef readonly shared_count functor_count
    cdef readonly shared_count wakeup_count
    cdef readonly shared_count busy_us
    cdef readonly shared_count longest_iteration_us
    cdef readonly shared_count slow_callback_count
    cdef long long _slow_ms
    cdef long long _next_slow_report_ms
    cdef object _signal_handlers
    cdef readonly atomic_long thread_id
    cdef str _thread_name
    cdef int _pid
    cdef Poller _poller
    cdef TimerQueue _timers
    cdef list _pending
    cdef shared_count _taken
    cdef list _active
    cdef list _to_flush
    cdef dict _close_hooks
    cdef object _lock
    cdef int _wakeup_fd
    cdef Channel _wakeup_channel
    cdef atomic_int _asleep
    cdef atomic_int _quit
    cdef atomic_int _running
    cdef atomic_int _open
    cdef atomic_int _closed
    cdef bint _closing
    cdef object _signals

    @cython.locals(active=list, channel=BaseChannel, at=Py_ssize_t, count=Py_ssize_t, begin_us=cython.longlong,
                   busy_us=cython.longlong, before_ms=cython.longlong, now_ms=cython.longlong)
    cdef object _iterate(self)
    cdef object _poll(self)
    cpdef object note_time(self, object source, long long held_ms)
    @cython.locals(pending=list, count=Py_ssize_t, functor=tuple, before_ms=cython.longlong, now_ms=cython.longlong)
    cdef object _run_pending(self, Py_ssize_t most)
    cdef list _take_pending(self)
    @cython.locals(functor=tuple)
    cdef object _end_everything(self, list errors)
    cdef bint _run_at_close(self, list functors, list errors) except -1
    cdef bint _is_own(self, BaseChannel channel) except -1
    @cython.locals(flushable=Flushable)
    cdef object _flush(self)
    cpdef bint is_in_loop_thread(self) noexcept
    cpdef object assert_in_loop_thread(self)
    @cython.locals(functor=tuple)
    cpdef bint post(self, object callback, tuple args) except -1
    cpdef object update_channel(self, BaseChannel channel)
    cpdef object remove_channel(self, BaseChannel channel)
    cpdef object flush_later(self, Flushable flushable)
    cpdef object renew_read_area(self)
    cdef object _wake_up(self)
    @cython.locals(delay_us=cython.longlong, interval_us=cython.longlong, timer=Timer)
    cdef Timer _add_timer(self, object callback, tuple args, double delay, double interval)
