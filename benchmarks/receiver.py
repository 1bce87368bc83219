"""The receiving side as a load generator has it: counts what C-STORE requests bring, and answers them.

Pixels stay in the kernel: it is told to drop them (MSG_TRUNC), so that an object costs its receiver some tens
of microseconds and what is measured is who sends. Only where digests are wanted are they read.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import selectors
import socket
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from scp_server.testing.wire import (
    PDV,
    Control,
    PDUType,
    Tag,
    associate_ac,
    c_store_rsp,
    p_data_tf,
    read_command_set,
    read_proposed,
    release_rp,
)

Digested = Callable[[str, str], object]

MAXIMUM_LENGTH = 131_072
TIMEOUT_SECONDS = 60.0
"""For the next bytes."""
C_STORE_RQ: Final = 0x0001
_PDU_HEADER_BYTES: Final = 6
_PDV_HEADER_BYTES: Final = 6
_READ_BYTES: Final = 16_384
"""A read that may begin with a header. What it has of a data set is copied in vain, so it is small."""
_DROPPED = bytearray(1 << 20)
"""Where data that nobody wants would go; the kernel writes nothing here."""


class Receiver:
    """One association's incoming bytes, whoever asked for it; answers each C-STORE request with 0x0000.

    `on_pdu` is told of PDUs other than P-DATA-TF, `on_command` of messages other than C-STORE requests.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_pdu: Callable[[int, bytes], None],
        on_command: Callable[[dict[int, bytes]], None] | None = None,
        digested: Digested | None = None,
    ) -> None:
        """`digested` is given the SOP Instance UID and SHA-256 of each data set."""
        self._socket = sock
        self._on_pdu = on_pdu
        self._on_command = on_command
        self._digested = digested
        self._hash = hashlib.sha256()
        self._buffer = memoryview(bytearray(_READ_BYTES if digested is None else 1 << 20))
        self._held = bytearray()
        """A header or a short PDU that has not come whole."""
        self._pdu_left = 0
        self._fragment_left = 0
        self._context_id = 0
        self._control = 0
        self._command = bytearray()
        self._request: dict[int, bytes] | None = None
        self.instances = 0
        self.dataset_bytes = 0

    def read(self) -> bool:
        """Take what there is, waiting for it on a blocking socket; False at the peer's end."""
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        if self._digested is None and self._fragment_left and not self._control & Control.COMMAND:
            size = self._socket.recv_into(_DROPPED, min(self._fragment_left, len(_DROPPED)), socket.MSG_TRUNC)
            self._dataset(_NOTHING, size)
        else:
            size = self._socket.recv_into(self._buffer)
            self._feed(self._buffer[:size])
        return size > 0

    def _feed(self, data: memoryview) -> None:
        while data:
            if self._fragment_left:
                size = min(self._fragment_left, len(data))
                if self._control & Control.COMMAND:
                    self._fragment_left -= size
                    self._command += data[:size]
                    if not self._fragment_left and self._control & Control.LAST:
                        self._command_ended()
                else:
                    self._dataset(data[:size], size)
                data = data[size:]
            elif self._pdu_left:
                data = self._pdv_header(data)
            else:
                data = self._pdu_header(data)

    def _pdu_header(self, data: memoryview) -> memoryview:
        header, data = self._whole(data, _PDU_HEADER_BYTES)
        if header is None:
            return data
        length = int.from_bytes(header[2:6], "big")
        if header[0] == PDUType.P_DATA_TF:
            self._pdu_left = length
            self._held.clear()
            return data
        whole, data = self._whole(data, _PDU_HEADER_BYTES + length)
        if whole is not None:
            pdu_type, body = whole[0], bytes(whole[_PDU_HEADER_BYTES:])
            self._held.clear()
            self._on_pdu(pdu_type, body)
        return data

    def _pdv_header(self, data: memoryview) -> memoryview:
        header, data = self._whole(data, _PDV_HEADER_BYTES)
        if header is not None:
            self._fragment_left = int.from_bytes(header[:4], "big") - 2
            self._context_id, self._control = header[4], header[5]
            self._pdu_left -= _PDV_HEADER_BYTES + self._fragment_left
            self._held.clear()
        return data

    def _whole(self, data: memoryview, size: int) -> tuple[bytearray | None, memoryview]:
        """What is held, once it has `size` bytes; and the rest of `data`."""
        missing = max(size - len(self._held), 0)
        self._held += data[:missing]
        return (self._held if len(self._held) >= size else None), data[missing:]

    def _command_ended(self) -> None:
        command = read_command_set(bytes(self._command))
        self._command.clear()
        if int.from_bytes(command[Tag.COMMAND_FIELD], "little") == C_STORE_RQ:
            self._request = command
        elif self._on_command is not None:
            self._on_command(command)

    def _dataset(self, fragment: memoryview, size: int) -> None:
        """Some bytes of a data set; `fragment` is empty where nobody wants to see them."""
        self._fragment_left -= size
        self.dataset_bytes += size
        if self._digested is not None:
            self._hash.update(fragment)
        if self._fragment_left or not self._control & Control.LAST or self._request is None:
            return
        request, self._request = self._request, None
        instance_uid = _text(request[Tag.AFFECTED_SOP_INSTANCE_UID])
        if self._digested is not None:
            self._digested(instance_uid, self._hash.hexdigest())
            self._hash = hashlib.sha256()
        self.instances += 1
        response = c_store_rsp(
            int.from_bytes(request[Tag.MESSAGE_ID], "little"),
            sop_class_uid=_text(request[Tag.AFFECTED_SOP_CLASS_UID]),
            sop_instance_uid=instance_uid,
        )
        self._socket.sendall(
            p_data_tf(PDV(self._context_id, Control(Control.COMMAND | Control.LAST), response))
        )


_NOTHING = memoryview(b"")


def _text(value: bytes) -> str:
    return value.decode("ascii").rstrip("\0 ")


class Destination:
    """A move destination in a process of its own: takes any association, and everything on it."""

    def __init__(self, ae_title: str, *, digests: bool = False) -> None:
        """With `digests` it reads what it is sent, which makes it slow."""
        self.ae_title = ae_title
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        context = multiprocessing.get_context("fork")
        self._counts = context.Array("q", 2)
        self._digests: multiprocessing.Queue[tuple[str, str]] | None = context.Queue() if digests else None
        self._process = context.Process(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._listener.close()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.join()

    @property
    def counts(self) -> tuple[int, int]:
        """Instances and bytes of data sets so far, of associations of now and before."""
        return self._counts[0], self._counts[1]

    def digests(self, instances: int) -> list[tuple[str, str]]:
        """SOP Instance UID and SHA-256 of the next so many. Raises queue.Empty when they do not come."""
        if self._digests is None:
            raise ValueError("this destination reads nothing")
        return [self._digests.get(timeout=TIMEOUT_SECONDS) for _ in range(instances)]

    def _run(self) -> None:
        digests = self._digests
        digested = None if digests is None else lambda uid, digest: digests.put((uid, digest))
        selector = selectors.DefaultSelector()
        selector.register(self._listener, selectors.EVENT_READ, None)
        while True:
            for key, _ in selector.select():
                if key.data is None:
                    accepted = _Accepted(self._listener.accept()[0], digested)
                    selector.register(accepted.socket, selectors.EVENT_READ, accepted)
                    continue
                self._take(selector, key.data)

    def _take(self, selector: selectors.BaseSelector, accepted: _Accepted) -> None:
        receiver = accepted.receiver
        instances, dataset_bytes = receiver.instances, receiver.dataset_bytes
        goes_on = False
        with suppress(ConnectionError):
            goes_on = receiver.read()
        self._counts[0] += receiver.instances - instances
        self._counts[1] += receiver.dataset_bytes - dataset_bytes
        if not goes_on:
            selector.unregister(accepted.socket)
            accepted.socket.close()


class _Accepted:
    """An association that somebody asked the destination for. Every context is accepted."""

    def __init__(self, sock: socket.socket, digested: Digested | None) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
        self.receiver = Receiver(sock, on_pdu=self._pdu, digested=digested)

    def _pdu(self, pdu_type: int, body: bytes) -> None:
        if pdu_type == PDUType.ASSOCIATE_RQ:
            contexts = {each.context_id: (0, each.transfer_syntaxes[0]) for each in read_proposed(body)}
            titles = body[4:36].decode("latin_1")
            self.socket.sendall(
                associate_ac(
                    contexts,
                    called_ae_title=titles[:16],
                    calling_ae_title=titles[16:],
                    maximum_length=MAXIMUM_LENGTH,
                )
            )
        elif pdu_type == PDUType.RELEASE_RQ:
            self.socket.sendall(release_rp())
