"""The real DICOS toolkit's server on a port of the loopback, until its standard input ends."""

from __future__ import annotations

import os
import sys

from pyDICOS import (
    RETRIEVE_METHOD,
    DataProcessingMultipleConnections,
    DcsApplicationEntity,
    DcsServer,
    DcsString,
)

server = DcsServer()
server.SetPort(int(sys.argv[1]))
server.SetIP(DcsString("127.0.0.1"))
server.SetApplicationName(DcsApplicationEntity("DCSSRV"))
server.IgnoreApplicationNames()
server.AllowAllCients()
callback = DataProcessingMultipleConnections()
server.StartListening(callback, None, RETRIEVE_METHOD.enumMethodUserAPI, False)
print("listening", flush=True)
sys.stdin.read()
server.StopListening()
log = DcsString("")
server.GetErrorLog(log)
print("errors:", log.Get(), flush=True)
# Its threads outlive the interpreter otherwise.
os._exit(0)
