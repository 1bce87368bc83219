"""Rules and a whole server: what is changed on arrival is what is found and fetched, whenever it is killed."""

from __future__ import annotations

import asyncio
import io
import itertools
import random
from pathlib import Path

import pydicom
from pydicom.filereader import read_dataset

from scp_server import Requestor, Settings
from scp_server.observability.logs import captured_logs
from scp_server.runtime.conformance import statement
from scp_server.testing.daemon import DaemonProcess, stored_files
from scp_server.testing.dicos_objects import dicos_tdr
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts
from tests.integration.conftest import StartServer
from tests.integration.test_kill import _indexed, _send_until_killed
from tests.integration.test_retrieve import EXPLICIT, RETRIEVES, STUDY_GET, Memory
