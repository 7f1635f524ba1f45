"""The firmware bridge: frames from a microcontroller over a serial line, and commands back. PROTOCOL.md specifies it.

Layers: schema (parses the C header) <- framing <- messages <- session (all without I/O) <- link; simulator, board and
faults are separate. This module imports nothing.
"""
