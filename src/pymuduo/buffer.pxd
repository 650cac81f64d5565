cimport cython

from pymuduo cimport _sys
from pymuduo._sys cimport ReadableRegion

cdef object _REQUESTS
cdef bytearray _NOTHING
cdef Py_ssize_t _CHEAP_PREPEND
cdef Py_ssize_t _SCRATCH_BYTES


cdef class Buffer(ReadableRegion):
    cdef object __weakref__
    cdef bytearray _borrowed
    cdef object _sought

    @cython.locals(count=Py_ssize_t)
    cpdef object append(self, object data)
    cpdef bytes retrieve_as_bytes(self, Py_ssize_t count)
    cpdef bytes retrieve_all_as_bytes(self)
    @cython.locals(taken=list, begin=Py_ssize_t, start=Py_ssize_t)
    cpdef list take_delimited(self, bytes delimiter, Py_ssize_t max_bytes)
    @cython.locals(taken=list, begin=Py_ssize_t)
    cpdef list take_prefixed(self, int width, Py_ssize_t max_bytes, bint is_big=*)
    @cython.locals(taken=list, begin=Py_ssize_t)
    cpdef list take_requests(self, Py_ssize_t max_bytes, Py_ssize_t max_words)
    @cython.locals(taken=list, begin=Py_ssize_t)
    cpdef list take_commands(self, dict blocks, Py_ssize_t max_line_bytes, Py_ssize_t max_words, Py_ssize_t max_bytes)
    cpdef object retrieve(self, Py_ssize_t count)
    cpdef object retrieve_all(self)
    @cython.locals(at=Py_ssize_t, looked=Py_ssize_t)
    cpdef Py_ssize_t find(self, bytes what, Py_ssize_t start=*) except -2
    @cython.locals(count=Py_ssize_t, writable=Py_ssize_t)
    cpdef Py_ssize_t read_fd(self, int fd, bytearray scratch=*) except? -1
    @cython.locals(count=Py_ssize_t)
    cpdef Py_ssize_t write_fd(self, int fd) except? -1
    cpdef object take_from(self, bytearray scratch, Py_ssize_t count)
    @cython.locals(scratch=bytearray)
    cpdef bint give_back(self) except -1
    cdef object _look_for(self, object what)
    cdef object _note_search(self, bytes what)
    cdef object _advance(self, Py_ssize_t count)
    @cython.locals(readable=Py_ssize_t, size=Py_ssize_t, room=Py_ssize_t, is_own=bint)
    cdef object _make_room(self, Py_ssize_t count)
    cpdef object swap(self, Buffer other)
    cdef object _reset(self)
    @cython.locals(readable=Py_ssize_t)
    cdef object _own(self, Py_ssize_t reserve)
    cdef object _need(self, Py_ssize_t count, str what)
    cpdef object _append_int(self, object value, int width)
    cpdef object _prepend_int(self, object value, int width)
    cpdef object _peek_int(self, int width)
    cpdef object _read_int(self, int width)


@cython.locals(made=Buffer)
cdef Buffer new_empty()
cpdef bytes _as_bytes(object data)
