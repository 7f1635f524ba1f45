"""Processes with torch already in them: one process imports it, and forks a child for each command that is asked of it.

    python warm_process.py serve SOCKET            imports torch, then forks
    python warm_process.py SOCKET MODULE ARGS...   as `python -m MODULE ARGS...`, in such a child

The second stands in for the process that edgecl starts: it hands over its arguments, environment, folder, input and
outputs, passes SIGTERM on, ends as the child ends, and takes the child with it if it is killed. Importing torch takes
2 to 5 s of processor per process, more than most rounds in tests. What limits memory, or is killed, needs the real one.
"""
import array
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress

KNOWN = 3   # descriptors handed over: input, output, errors


def serve(path):
    import numpy  # noqa: F401
    import onnx  # noqa: F401
    import torch

    from edgecl.rounds.process import end_with_parent

    end_with_parent()
    torch.set_num_threads(1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + ".new")
    listener.listen(64)
    os.rename(path + ".new", path)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            supervise(client)
        client.close()


def supervise(client):
    """Run one command in a child, and end it if the client goes."""
    text, data = b"", array.array("i")
    while not text.endswith(b"\n"):
        part, ancillary, _, _ = client.recvmsg(65536, socket.CMSG_SPACE(KNOWN * data.itemsize))
        if not part:
            os._exit(0)
        text += part
        for _, _, values in ancillary:
            data.frombytes(values)
    asked = json.loads(text)
    child = os.fork()
    if child == 0:
        client.close()
        for target, source in enumerate(data):
            os.dup2(source, target)
            os.close(source)
        run(asked)
    for descriptor in data:
        os.close(descriptor)
    client.sendall(b"%d\n" % child)
    watched = os.pidfd_open(child)
    if watched not in select.select([client, watched], [], [])[0]:      # the client has gone
        signal.pidfd_send_signal(watched, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with suppress(OSError):
        client.sendall(b"%d\n" % status)
    os._exit(0)


def run(asked):
    import runpy
    import traceback

    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    sys.argv, sys.path = asked["arguments"], asked["path"] + sys.path
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in enumerate("rww"))
    status = 1
    try:
        runpy.run_module(asked["arguments"][0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def stand_in(path, *arguments):
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    asked = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd(), "path": [""]}
    socket.send_fds(client, [json.dumps(asked).encode() + b"\n"], [0, 1, 2])
    answers = client.makefile("rb")
    child = int(answers.readline())
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    status = int(answers.readline() or 9)
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    sys.exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1] == "serve" else stand_in(*sys.argv[1:])
