"""As `python -m MODULE ARGS...`, but at usual priority: python awake_process.py MODULE ARGS...

The worker of a round takes only the time that nobody else wants. Beside a program that always wants it, it would take a
thousand times as long: a test that waits for what it does, not for how it gives way, runs it by this.
"""
import os
import runpy
import sys

import edgecl.rounds.process

if __name__ == "__main__":
    edgecl.rounds.process.run_when_idle = lambda: None
    os.nice = lambda increment: 0
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
