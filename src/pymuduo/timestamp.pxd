cimport cython


cdef class Timestamp:
    cdef readonly long long us


@cython.locals(moment=Timestamp)
cdef Timestamp from_us(long long us)
