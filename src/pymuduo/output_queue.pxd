from pymuduo cimport _sys


cdef class OutputQueue:
    cdef list _chunks
    cdef Py_ssize_t _first
    cdef Py_ssize_t _offset
    cdef readonly Py_ssize_t size

    cpdef object append(self, bytes chunk)
    cpdef Py_ssize_t write_to(self, int fd) except? -1
    cdef object _drop(self, Py_ssize_t count)
    cpdef object clear(self)
