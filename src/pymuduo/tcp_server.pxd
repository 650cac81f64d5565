from pymuduo cimport _sys, inet_address
from pymuduo.acceptor cimport Acceptor
from pymuduo.event_loop cimport EventLoop
from pymuduo.inet_address cimport InetAddress
from pymuduo.tcp_connection cimport TcpConnection


cdef extern from "<stdatomic.h>":
    ctypedef int atomic_int


cdef class TcpServer:
    cdef object __weakref__
    cdef readonly EventLoop loop
    cdef readonly str name
    cdef readonly InetAddress address
    cdef public object context
    cdef public object connection_callback
    cdef public object message_callback
    cdef public object write_complete_callback
    cdef public object high_water_mark_callback
    cdef public Py_ssize_t high_water_mark
    cdef public object close_callback
    cdef public object thread_init_callback
    cdef readonly object thread_pool
    cdef Acceptor _acceptor
    cdef dict _connections
    cdef str _name_prefix
    cdef long long _next_number
    cdef object _state_lock
    cdef atomic_int _start_requested
    cdef atomic_int _stop_requested
    cdef object _close_hook
    cdef double _drain_deadline
    cdef bint _stopping
    cdef bint _threads_ending
    cdef object _stopped
    cdef object _drain_timer
