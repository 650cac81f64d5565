cimport cython

from pymuduo cimport _sys
from pymuduo.channel cimport BaseChannel
from pymuduo.poller.base cimport Poller

cdef int _ADD
cdef int _DELETE
cdef int _MODIFY
cdef int _NEW
cdef int _ADDED
cdef int _EINTR
cdef int _MAX_EVENTS


cdef class EPollPoller(Poller):
    cdef _sys.Epoll _epoll

    @cython.locals(count=int, i=int, channel=BaseChannel)
    cpdef object poll(self, int timeout_ms, list active)
    @cython.locals(result=int)
    cpdef object update_channel(self, BaseChannel channel)
    @cython.locals(result=int)
    cdef object _take_out(self, BaseChannel channel)
