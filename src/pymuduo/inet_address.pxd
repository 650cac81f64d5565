cimport cython


cdef class InetAddress:
    cdef readonly str ip
    cdef readonly int port
    cdef readonly long long scope_id


@cython.locals(made=InetAddress)
cpdef InetAddress from_kernel(tuple address)
