"""The firmware bridge: a microcontroller's frames over a serial line, and commands back. PROTOCOL.md is the contract.

Layers: schema (the C header, read) <- framing <- messages <- session (all without I/O) <- link; simulator and faults
stand beside them. Nothing is imported here.
"""
