cimport cython

from pymuduo.buffer cimport Buffer
from pymuduo.tcp_connection cimport TcpConnection


cdef class Codec:
    cdef public object message_callback
    cdef public object batch_callback
    cdef public object error_callback
    cdef readonly Py_ssize_t max_bytes

    cpdef list decode(self, Buffer buffer)
    cpdef bytes encode(self, object payload)
    cpdef bytes encode_all(self, object payloads)
    @cython.locals(messages=list)
    cpdef object on_message(self, TcpConnection connection, Buffer buffer, object receive_time)
    cpdef bint send(self, TcpConnection connection, object payload) except -1
    cpdef bint send_all(self, TcpConnection connection, object payloads) except -1
    @cython.locals(count=Py_ssize_t)
    cdef bint _deliver(
        self, TcpConnection connection, list messages, Py_ssize_t at, object layer, object receive_time) except -1
    cdef object _hold(
        self, TcpConnection connection, list messages, Py_ssize_t at, object layer, object receive_time)
    cpdef bint _deliver_held(
        self, list messages, Py_ssize_t at, object layer, object receive_time, TcpConnection connection) except -1


cpdef bytes as_bytes(object payload)
cpdef list list_of_bytes(object payloads)
