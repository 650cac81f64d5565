cimport cython

from pymuduo cimport _sys

cdef Py_ssize_t _COMPACT_AFTER


cdef class OutputQueue:
    cdef bytes _head
    cdef Py_ssize_t _offset
    cdef list _tail
    cdef Py_ssize_t _next
    cdef readonly Py_ssize_t size

    cpdef object append(self, bytes chunk)
    @cython.locals(count=Py_ssize_t, head=bytes)
    cpdef Py_ssize_t write_to(self, int fd) except? -1
    @cython.locals(head=bytes, tail=list)
    cdef object _drop(self, Py_ssize_t count)
    cpdef object clear(self)
