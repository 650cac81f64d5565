from pymuduo.buffer cimport Buffer


cdef class Layer:
    cdef public object connection
    cdef public Py_ssize_t unsent
    cdef public Py_ssize_t payload_sent
    cdef public bint holds_up
    cdef public bint holds_input
    cdef public object ssl_object

    cpdef Py_ssize_t read(self, Buffer into) except? -1
    cpdef Py_ssize_t read_held(self, Buffer into) except? -1
    cpdef object append(self, bytes data)
    cpdef Py_ssize_t write(self) except? -1
