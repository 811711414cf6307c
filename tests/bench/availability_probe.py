#!/usr/bin/env python3
"""
Asks each API server for /readyz ten times a second, each time on a new connection, and keeps when its answer changed.

Runs inside the lab's network, one small process: ``availability_probe.py CA NAME=ADDRESS …``. After SIGTERM it prints,
as JSON, the samples' states by node as [[seconds since the epoch, state], …], only where the state changed. A state is
the HTTP status, "refused", or "no answer".
"""

import json
import os
import signal
import socket
import ssl
import sys
import threading
import time

PERIOD_S, TIMEOUT_S, PORT = 0.1, 1, 6443


def ask(context, address):
    """Return how the API server at ``address`` answers now."""
    request = f"GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    try:
        with (
            socket.create_connection((address, PORT), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=address) as secure,
        ):
            secure.sendall(request.encode())
            return secure.recv(64).split()[1].decode()
    except ConnectionRefusedError:
        return "refused"
    except (OSError, IndexError):
        return "no answer"


def watch(context, address, states, stop):
    """Sample until ``stop``; a sample that takes long delays the next ones."""
    due = time.monotonic()
    while not stop.wait(max(0.0, due - time.monotonic())):
        due = max(due + PERIOD_S, time.monotonic())
        moment, state = time.time(), ask(context, address)
        if not states or states[-1][1] != state:
            states.append([round(moment, 2), state])


def main():
    context, stop = ssl.create_default_context(cafile=sys.argv[1]), threading.Event()
    found = {}
    for pair in sys.argv[2:]:
        name, _, address = pair.partition("=")
        found[name] = []
        threading.Thread(target=watch, args=(context, address, found[name], stop), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    print(json.dumps("ready"), flush=True)
    stop.wait()
    print(json.dumps({"states": found, "ended": time.time(), "cpu_s": round(sum(os.times()[:4]), 2)}), flush=True)


if __name__ == "__main__":
    main()
