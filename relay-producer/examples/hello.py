#!/usr/bin/env python3
"""Writes each line of standard input as a message, with librelay. hello.py [CHANNEL]"""

import ctypes
import os
import sys

relay = ctypes.CDLL("librelay.so.0", use_errno=True)
relay.relay_open.restype = ctypes.c_void_p
relay.relay_open.argtypes = [
    ctypes.c_char_p,  # base_filename
    ctypes.c_void_p,  # parent
    ctypes.c_size_t,  # subbuf_size
    ctypes.c_size_t,  # n_subbufs
    ctypes.c_void_p,  # callbacks
    ctypes.c_void_p,  # private_data: ctypes always passes all six arguments
]
relay.relay_write.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
relay.relay_close.argtypes = [ctypes.c_void_p]


def check(done, what):
    if not done:
        errno = ctypes.get_errno()
        sys.exit(f"hello.py: {what}: {os.strerror(errno)}")


if len(sys.argv) > 2 or sys.argv[1:2] in (["-h"], ["--help"]):
    print("usage: hello.py [CHANNEL], with messages on standard input", file=sys.stderr)
    sys.exit(2)
name = sys.argv[1] if len(sys.argv) > 1 else "cpu"
chan = relay.relay_open(name.encode(), None, 65536, 4, None, None)
check(chan, name)
for line in sys.stdin.buffer:
    check(relay.relay_write(chan, line, len(line)) == 0, "relay_write")
check(relay.relay_close(chan) == 0, "relay_close")
