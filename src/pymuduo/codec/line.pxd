cimport cython

from pymuduo cimport _sys
from pymuduo.buffer cimport Buffer
from pymuduo.codec.base cimport Codec, as_bytes, list_of_bytes


cdef class LineCodec(Codec):
    cdef readonly bytes delimiter

    @cython.locals(lines=list)
    cpdef list decode(self, Buffer buffer)
    cpdef bytes encode(self, object payload)
    cpdef bytes encode_all(self, object payloads)
