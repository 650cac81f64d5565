cimport cython

from pymuduo.buffer cimport Buffer
from pymuduo.codec.base cimport Codec, as_bytes, list_of_bytes


cdef class FixedLengthCodec(Codec):
    @cython.locals(size=Py_ssize_t)
    cpdef list decode(self, Buffer buffer)
    @cython.locals(message=bytes)
    cpdef bytes encode(self, object payload)
    @cython.locals(messages=list)
    cpdef bytes encode_all(self, object payloads)
