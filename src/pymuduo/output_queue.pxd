cimport cython

from pymuduo cimport _sys

cdef Py_ssize_t _SMALL
cdef Py_ssize_t _AREA_BYTES
cdef Py_ssize_t _MAX_AREA_BYTES
cdef Py_ssize_t _COMPACT_AFTER


@cython.final
cdef class OutputQueue:
    cdef bytearray _area
    cdef Py_ssize_t _begin
    cdef Py_ssize_t _end
    cdef list _chunks
    cdef Py_ssize_t _first
    cdef Py_ssize_t _offset
    cdef readonly Py_ssize_t size

    @cython.locals(count=Py_ssize_t)
    cpdef object append(self, bytes chunk)
    @cython.locals(count=Py_ssize_t)
    cpdef Py_ssize_t write_to(self, int fd) except? -1
    @cython.locals(copied=Py_ssize_t, chunks=list, chunk=bytes)
    cpdef object drop(self, Py_ssize_t count)
    cpdef object clear(self)
    @cython.locals(larger=bytearray)
    cdef object _grow(self)
