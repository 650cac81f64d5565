from pymuduo cimport _sys
from pymuduo._sys cimport ReadableRegion

cdef bytearray _NOTHING
cdef Py_ssize_t _CHEAP_PREPEND


cdef class Buffer(ReadableRegion):
    cdef object __weakref__
    cdef bint _borrowed

    cpdef object append(self, object data)
    cpdef bytes retrieve_as_bytes(self, Py_ssize_t count)
    cpdef bytes retrieve_all_as_bytes(self)
    cpdef object retrieve(self, Py_ssize_t count)
    cpdef object retrieve_all(self)
    cpdef Py_ssize_t find(self, bytes what, Py_ssize_t start=*) except -2
    cpdef Py_ssize_t read_fd(self, int fd, bytearray scratch=*) except? -1
    cpdef bint give_back(self) except -1
    cdef object _advance(self, Py_ssize_t count)
    cdef object _make_room(self, Py_ssize_t count)
    cpdef object swap(self, Buffer other)
    cdef object _reset(self)
    cdef object _own(self, Py_ssize_t reserve)
    cdef object _need(self, Py_ssize_t count, str what)
    cpdef object _append_int(self, object value, int width)
    cpdef object _prepend_int(self, object value, int width)
    cpdef object _peek_int(self, int width)
    cpdef object _read_int(self, int width)


cpdef bytes _as_bytes(object data)
