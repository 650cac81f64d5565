from pymuduo cimport _sys, inet_address
from pymuduo.channel cimport Channel
from pymuduo.event_loop cimport EventLoop
from pymuduo.inet_address cimport InetAddress
from pymuduo.socket cimport Socket

cdef int _WOULD_BLOCK


cdef class Acceptor:
    cdef object __weakref__
    cdef readonly EventLoop loop
    cdef readonly Socket socket
    cdef readonly object address
    cdef public object new_connection_callback
    cdef Channel _channel
    cdef readonly bint has_reserve
    cdef int _reserve_fd
    cdef readonly object _file
    cdef object _resume_timer
    cdef double _resume_at
    cdef double _next_report
    cdef long long _turned_away

    cdef object _hand_on(self, int fd, object peer)
    cdef object _remove_file(self)
