cimport cython

from pymuduo cimport _sys, buffer, socket
from pymuduo._sys cimport atomic_int, shared_count
from pymuduo.buffer cimport Buffer
from pymuduo.channel cimport BaseChannel
from pymuduo.event_loop cimport EventLoop, Flushable
from pymuduo.layer cimport Layer
from pymuduo.output_queue cimport OutputQueue
from pymuduo.socket cimport Socket

cdef int _CONNECTING
cdef int _CONNECTED
cdef int _DISCONNECTING
cdef int _DISCONNECTED
cdef unsigned int _READ
cdef unsigned int _WRITE
cdef unsigned int _ERROR
cdef unsigned int _PEER_SHUTDOWN
cdef int _EAGAIN
cdef int _EINTR
cdef int _ENOMEM
cdef int _ENOBUFS
cdef int _ENOTCONN
cdef int _MAX_WRITES
cdef Py_ssize_t _WRITE_AT_ONCE
cdef Py_ssize_t _WRITE_IN_PLACE


cdef class TcpConnection(Flushable)


cdef class ConnectionChannel(BaseChannel):
    cdef TcpConnection _connection

    @cython.locals(connection=TcpConnection)
    cpdef object handle_event(self)
    @cython.locals(connection=TcpConnection)
    cdef object _handle_read(self)
    @cython.locals(connection=TcpConnection)
    cdef object _handle_write(self)
    @cython.locals(connection=TcpConnection)
    cdef object _handle_close(self)
    @cython.locals(connection=TcpConnection)
    cdef object _handle_error(self)

cdef class TcpConnection(Flushable):
    cdef object __weakref__
    cdef readonly EventLoop loop
    cdef object _local_address
    cdef object _peer_address
    cdef public object context
    cdef public object connection_callback
    cdef public object message_callback
    cdef public object write_complete_callback
    cdef public object high_water_mark_callback
    cdef public object low_water_mark_callback
    cdef public object peer_shutdown_callback
    cdef public object close_callback
    cdef public Py_ssize_t high_water_mark
    cdef public Py_ssize_t low_water_mark
    cdef public Py_ssize_t max_output_bytes
    cdef public object error
    cdef readonly Layer layer
    cdef public object proxy_header
    cdef readonly shared_count bytes_received
    cdef readonly shared_count bytes_sent
    cdef readonly shared_count messages_received
    cdef readonly shared_count messages_sent
    cdef object _name
    cdef readonly long long number
    cdef object _owner
    cdef object _close_timer
    cdef Socket _socket
    cdef ConnectionChannel _channel
    cdef Buffer _input
    cdef object _held
    cdef bytes _only_chunk
    cdef OutputQueue _output
    cdef Py_ssize_t _unsent
    cdef atomic_int _state
    cdef atomic_int _closing
    cdef atomic_int _reading
    # Flags, a byte each.
    cdef unsigned char _stop_wanted
    cdef unsigned char _in_handler
    cdef unsigned char _is_over
    cdef unsigned char _above_mark
    cdef unsigned char _completion_due
    cdef unsigned char _low_due
    cdef unsigned char _half_close_wanted
    cdef unsigned char _output_ended
    cdef unsigned char _fin_sent
    cdef unsigned char _peer_closed
    cdef unsigned char _was_up
    cdef unsigned char _write_failed
    cdef unsigned char _destroyed

    @cython.locals(source=Buffer, size=Py_ssize_t)
    cpdef bint send(self, object data) except -1
    cpdef bint _send_in_loop(self, bytes data) except -1
    cdef bint _queue_output(self, bytes data) except -1
    @cython.locals(size=Py_ssize_t, count=Py_ssize_t)
    cdef bint _send_buffer(self, Buffer source) except -1
    @cython.locals(count=Py_ssize_t)
    cdef object _handle_read(self)
    cdef object _handle_write(self)
    cdef object _handle_hang_up(self)
    cdef object _handle_error(self)
    cdef object _handle_unread_fin(self)
    cdef bint _has_unread(self) except -1
    cdef object _handle_peer_shutdown(self)
    cpdef object _handle_close(self)
    cdef object _stop_for_good(self)
    cdef object _read_on(self)
    cdef object _take_message(self, Buffer received)
    cdef object _leave_handler(self, Buffer received)
    cdef object _handle_failure(self, object exception)
    @cython.locals(queue=OutputQueue)
    cdef OutputQueue _queue(self)
    @cython.locals(count=Py_ssize_t, _=int)
    cdef object _write_output(self)
    cdef object _drop_output(self)
    cdef object _release_queue(self)
    cdef object _come_up(self)
    cdef object _start_layer(self)
    cdef object _take_layer_output(self)
    @cython.locals(layer=Layer, count=Py_ssize_t, _=int)
    cdef object _write_layer(self)
    cdef object _reach_low_water(self)
    cdef object _overflow(self)
    cdef object _output_drained(self)
    cdef object _call_user(self, object callback)
    @cython.locals(error=int)
    cdef object _half_close(self)
    cdef object _output_blocked(self)
    cdef object _fail_output(self, int error)
    cdef object _check_high_water(self)
    cdef object _set_interest(self, unsigned int events)
    cpdef object flush(self)
    cpdef object force_close(self)


@cython.locals(channel=ConnectionChannel)
cdef ConnectionChannel _channel_of(TcpConnection connection, int fd)
cpdef object _check_sendable(object data)
