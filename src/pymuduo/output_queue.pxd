cimport cython

from pymuduo cimport _sys

cdef Py_ssize_t _COMPACT_AFTER


@cython.final
cdef class OutputQueue:
    cdef list _chunks
    cdef Py_ssize_t _first
    cdef Py_ssize_t _offset
    cdef readonly Py_ssize_t size

    cpdef object append(self, bytes chunk)
    @cython.locals(count=Py_ssize_t)
    cpdef Py_ssize_t write_to(self, int fd) except? -1
    @cython.locals(chunks=list, chunk=bytes)
    cpdef object drop(self, Py_ssize_t count)
    cpdef object clear(self)
