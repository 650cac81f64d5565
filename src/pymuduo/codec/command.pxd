cimport cython

from pymuduo.buffer cimport Buffer
from pymuduo.codec.base cimport Codec, as_bytes


cdef class CommandCodec(Codec):
    cdef dict _blocks
    cdef readonly Py_ssize_t max_line_bytes
    cdef readonly Py_ssize_t max_words

    cpdef list decode(self, Buffer buffer)
    cpdef bytes encode(self, object payload)
    cpdef bytes encode_all(self, object payloads)
    cdef list _parts(self, object payload)
