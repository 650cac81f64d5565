from pymuduo.channel cimport BaseChannel


cdef class Poller:
    cdef readonly list _channels
    cdef readonly int channel_count

    cpdef object poll(self, int timeout_ms, list active)
    cpdef object update_channel(self, BaseChannel channel)
    cpdef object remove_channel(self, BaseChannel channel)
    cpdef object close(self)
    cpdef bint has_channel(self, BaseChannel channel) except -1
    cpdef object _remember(self, BaseChannel channel)
    cpdef object _forget(self, BaseChannel channel)
