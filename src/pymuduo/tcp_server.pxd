cimport cython

from pymuduo cimport _sys, inet_address
from pymuduo._sys cimport atomic_int, shared_count
from pymuduo.acceptor cimport Acceptor
from pymuduo.connection_source cimport ConnectionSource
from pymuduo.event_loop cimport EventLoop
from pymuduo.tcp_connection cimport TcpConnection


cdef class TcpServer(ConnectionSource):
    cdef object __weakref__
    cdef readonly EventLoop loop
    cdef readonly str name
    cdef readonly object address
    cdef readonly str acceptors
    cdef public object context
    cdef public object ssl_context
    cdef public double handshake_timeout_s
    cdef public object handshake_failed_callback
    cdef public object proxy_protocol
    cdef public object limits
    cdef public object thread_init_callback
    cdef readonly object thread_pool
    cdef Acceptor _acceptor
    cdef list _loop_acceptors
    cdef bint _no_delay
    cdef bint _is_inherited
    cdef dict _connections
    cdef dict _guests
    cdef object _number_lock
    cdef shared_count _accepted
    cdef shared_count _refused
    cdef shared_count _failed
    cdef shared_count _bytes_received
    cdef shared_count _bytes_sent
    cdef shared_count _messages_received
    cdef shared_count _messages_sent
    cdef atomic_int _awaited
    cdef Py_ssize_t _socket_closings
    cdef double _grace_deadline
    cdef str _name_prefix
    cdef long long _next_number
    cdef object _state_lock
    cdef atomic_int _start_requested
    cdef atomic_int _stop_requested
    cdef readonly object _close_hook
    cdef double _drain_deadline
    cdef bint _stopping
    cdef bint _threads_ending
    cdef object _stopped
    cdef object _drain_timer

    @cython.locals(connection=TcpConnection, number=cython.longlong)
    cdef object _take_in(self, int fd, object peer, EventLoop io_loop, Acceptor acceptor)
    cdef object _local_address_of(self, int fd)
    cdef long long _take_number(self) except -1
    cdef object _forget_connection(self, TcpConnection connection)
