cimport cython

from pymuduo cimport _sys
from pymuduo.buffer cimport Buffer
from pymuduo.codec.base cimport Codec, as_bytes, list_of_bytes

cdef list _BYTES


cdef class VarintCodec(Codec):
    @cython.locals(
        messages=list, data=bytearray, begin=Py_ssize_t, end=Py_ssize_t, limit=Py_ssize_t, at=Py_ssize_t,
        length=Py_ssize_t, shift=int, byte=Py_ssize_t, violation=str)
    cpdef list decode(self, Buffer buffer)
    @cython.locals(message=bytes)
    cpdef bytes encode(self, object payload)
    @cython.locals(parts=list, message=bytes)
    cpdef bytes encode_all(self, object payloads)
    @cython.locals(length=Py_ssize_t, header=bytes)
    cdef bytes _header(self, bytes message)
