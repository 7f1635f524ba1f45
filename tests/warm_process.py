"""Processes with torch already in them: one process imports it, and forks a child for each command that it is given.

    python warm_process.py serve SOCKET PARENT     imports torch, then forks; ends with its parent
    python warm_process.py SOCKET MODULE ARGS...   as `python -m MODULE ARGS...`, in such a child

The second stands in for the process that edgecl starts: it hands over its arguments, environment, folder, input and
outputs, passes SIGTERM on, ends as the child ends, and takes the child with it if it or its parent is killed. Importing
torch takes 2 to 5 s of processor per process, more than most rounds in tests. What limits memory, or is killed, needs
the real process.
"""
import array
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress

from edgecl.rounds import process
from edgecl.rounds.process import end_with_parent

HANDED_OVER = 3   # descriptors: input, output, errors


def serve(path, parent):
    end_with_parent()
    if os.getppid() != parent:      # it ended before that
        sys.exit(1)
    import numpy  # noqa: F401
    import onnx  # noqa: F401
    import torch

    process.run_when_idle, os.nice = lambda: None, lambda increment: 0      # as awake_process.py
    torch.set_num_threads(1)        # no pool of threads, which a fork would lose
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + ".new")
    listener.listen(64)
    os.rename(path + ".new", path)
    while True:
        client, _ = listener.accept()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:    # those that have ended; their processor time counts as ours
                pass
        if os.fork() == 0:
            listener.close()
            try:
                supervise(client)
            finally:
                os._exit(0)
        client.close()


def receive(client):
    """The command as a dict, and its descriptors; None if the client has gone."""
    text, descriptors = b"", array.array("i")
    while not text.endswith(b"\n"):
        part, ancillary, _, _ = client.recvmsg(65536, socket.CMSG_SPACE(HANDED_OVER * descriptors.itemsize))
        if not part:
            return None, descriptors
        text += part
        for _, _, values in ancillary:
            descriptors.frombytes(values)
    return json.loads(text), descriptors


def supervise(client):
    """Run one command in a child, send it the signals that the client sends, and kill it if the client goes."""
    asked, descriptors = receive(client)
    if asked is None:
        return
    ended, wake = os.pipe()
    for descriptor in (ended, wake):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)      # the pipe tells of SIGCHLD; no pidfd_open, which some builds of Python lack
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (ended, wake, client.detach()):
            os.close(descriptor)
        for target, source in enumerate(descriptors):
            os.dup2(source, target)
            os.close(source)
        run(asked)
    for descriptor in descriptors:
        os.close(descriptor)
    with suppress(OSError):         # the client has gone: killed below
        client.sendall(b"started\n")
    while ended not in (ready := select.select([client, ended], [], [])[0]):
        sent = b""
        with suppress(OSError):
            sent = client.recv(1) if client in ready else b""
        os.kill(child, sent[0] if sent else signal.SIGKILL)     # its number is not free before waitpid
        if not sent:
            break
    _, status = os.waitpid(child, 0)
    with suppress(OSError):
        client.sendall(b"%d\n" % status)


def run(asked):
    """The command as Python runs a module, in this process, which ends with it."""
    import runpy
    import traceback

    status = 1
    try:
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["folder"])
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
        sys.argv = asked["arguments"]
        sys.path[:1] = [asked["folder"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(status & 255)


def stand_in(path, *arguments):
    end_with_parent()
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    asked = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    socket.send_fds(client, [json.dumps(asked).encode() + b"\n"], [0, 1, 2])
    answers = client.makefile("rb")
    answers.readline()

    def hand_on(number, _):
        with suppress(OSError):     # it has just ended
            client.send(bytes([number]))

    signal.signal(signal.SIGTERM, hand_on)
    status = int(answers.readline() or int(signal.SIGKILL))
    if os.WIFSIGNALED(status):
        with suppress(OSError):     # SIGKILL has no handler to reset
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        stand_in(*sys.argv[1:])
