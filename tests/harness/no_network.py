"""A module for ``sitecustomize``: whoever looks at the network ends, and says so."""

BLOCKED = """
import os, socket, sys
def refuse(*given, **named):
    print("the network was reached for", file=sys.stderr, flush=True)
    os._exit(77)
socket.create_connection = socket.getaddrinfo = refuse
_connect = socket.socket.connect
def connect(self, address):
    return _connect(self, address) if self.family == socket.AF_UNIX else refuse()
socket.socket.connect = connect
"""


def block(folder):
    """Write the module into a folder, for PYTHONPATH."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(BLOCKED)
    return folder
