cimport cython

from pymuduo.buffer cimport Buffer
from pymuduo.codec.base cimport Codec, as_bytes


cdef int _STAR


cdef class RespCodec(Codec):
    cdef readonly Py_ssize_t max_words

    @cython.locals(requests=list)
    cpdef list decode(self, Buffer buffer)
    cpdef bytes encode(self, object payload)
    cpdef bytes encode_all(self, object payloads)
    @cython.locals(parts=list, word=bytes)
    cdef list _parts(self, object payload)
    cdef list _take_line(self, Buffer buffer)


cpdef list words_of(bytes line)
