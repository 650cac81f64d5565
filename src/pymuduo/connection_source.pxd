from pymuduo.tcp_connection cimport TcpConnection


cdef class ConnectionSource:
    cdef public object connection_callback
    cdef public object message_callback
    cdef public object write_complete_callback
    cdef public object high_water_mark_callback
    cdef public Py_ssize_t high_water_mark
    cdef public object low_water_mark_callback
    cdef public Py_ssize_t low_water_mark
    cdef public Py_ssize_t max_output_bytes
    cdef public object peer_shutdown_callback
    cdef public object close_callback
    cdef public object idle_timeouts

    cpdef object equip(self, TcpConnection connection)
