from pymuduo.channel cimport Channel


cdef class Poller:
    cdef readonly list _channels
    cdef readonly int channel_count

    cpdef object poll(self, int timeout_ms, list active)
    cpdef object update_channel(self, Channel channel)
    cpdef object remove_channel(self, Channel channel)
    cpdef object close(self)
    cpdef bint has_channel(self, Channel channel) except -1
    cpdef object _remember(self, Channel channel)
    cpdef object _forget(self, Channel channel)
