cimport cython

from pymuduo cimport _sys, inet_address
from pymuduo.inet_address cimport InetAddress


cdef class Socket:
    cdef object __weakref__
    cdef readonly int fd
    cdef readonly bint is_open

    cpdef object set_keep_alive(self, bint on)
    cpdef object set_tcp_no_delay(self, bint on)
    cpdef int shutdown_write(self) noexcept
    cpdef object close(self)


@cython.locals(made=Socket)
cdef Socket owner_of(int fd)


cdef object _address(object address)
