from pymuduo.timestamp cimport Timestamp

cdef unsigned int _READ
cdef unsigned int _WRITE
cdef unsigned int _ERROR
cdef unsigned int _HANG_UP
cdef unsigned int _INVALID
cdef unsigned int _PEER_SHUTDOWN


cdef int _NEW

cdef class BaseChannel


cdef class ChannelHost:
    cdef readonly Timestamp poll_return_time

    cpdef object update_channel(self, BaseChannel channel)
    cpdef object remove_channel(self, BaseChannel channel)


cdef class BaseChannel:
    cdef object __weakref__
    cdef readonly ChannelHost loop
    cdef readonly int fd
    cdef public unsigned int events
    cdef public unsigned int revents
    cdef public int index

    cdef object _set_up(self, ChannelHost loop, int fd)
    cpdef object handle_event(self)
    cdef object _handle_read(self)
    cdef object _handle_write(self)
    cdef object _handle_close(self)
    cdef object _handle_error(self)
    cpdef object set_interest(self, unsigned int events)
    cpdef object enable_reading(self)
    cpdef object disable_reading(self)
    cpdef object enable_writing(self)
    cpdef object disable_writing(self)
    cpdef object disable_all(self)
    cpdef object remove(self)


cdef class Channel(BaseChannel):
    cdef object _owner
    cdef public object read_callback
    cdef public object write_callback
    cdef public object close_callback
    cdef public object error_callback
