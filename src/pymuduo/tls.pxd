cimport cython

from pymuduo.buffer cimport Buffer
from pymuduo.layer cimport Layer
from pymuduo.tcp_connection cimport TcpConnection

cdef Py_ssize_t _READ_BYTES
cdef Py_ssize_t _WARY_READ_BYTES
cdef Py_ssize_t _MAX_BARREN_BYTES


cdef class TlsLayer(Layer):
    cdef object _incoming
    cdef object _outgoing
    cdef bytes _sealed
    cdef Py_ssize_t _written
    cdef object _plain
    cdef Py_ssize_t _plain_size
    cdef list _files
    cdef bint _is_done
    cdef bint _is_upgrade
    cdef bint _has_eof
    cdef bint _has_ended
    cdef bint _has_failed
    cdef Py_ssize_t _read_bytes
    cdef Py_ssize_t _barren_bytes
    cdef double _timeout_s
    cdef object _timer
    cdef object _ready_callback

    cdef object _shake(self)
    @cython.locals(connection=TcpConnection, count=Py_ssize_t, area=bytearray)
    cpdef Py_ssize_t read(self, Buffer into) except? -1
    @cython.locals(connection=TcpConnection, area=bytearray)
    cpdef Py_ssize_t read_held(self, Buffer into) except? -1
    cdef object _take_back(self, Buffer into)
    @cython.locals(connection=TcpConnection)
    cdef Py_ssize_t _go_on(self, Buffer into, bytearray area) except? -1
    @cython.locals(total=Py_ssize_t, count=Py_ssize_t, waiting=Py_ssize_t)
    cdef Py_ssize_t _open(self, Buffer into, bytearray area) except? -1
    cdef object _weigh(self, Py_ssize_t used, Py_ssize_t total)
    cdef object _read_again(self)
    cpdef object append(self, bytes data)
    @cython.locals(connection=TcpConnection, sealed=bytes, count=Py_ssize_t)
    cpdef Py_ssize_t write(self) except? -1
    @cython.locals(count=Py_ssize_t)
    cdef object _seal(self)
    @cython.locals(room=Py_ssize_t)
    cdef object _gather(self)
    @cython.locals(unsent=Py_ssize_t)
    cdef object _count_unsent(self)
    cdef object _finish_files(self, object error)
    cdef object _note(self, object error)
    cdef object _fail(self, object error)
