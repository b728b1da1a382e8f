"""Receives trace spans over OTLP/HTTP on the loopback address; it exports and forwards nothing.

Reads the few fields it needs from the protobuf wire format itself, so that measuring a start-up
needs no package beside the ones that vLLM has. Format: opentelemetry/proto/trace/v1/trace.proto.
"""

import gzip
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATH = "/v1/traces"
LARGEST_BODY = 64 << 20


class TraceFormatError(ValueError):
    """What arrived is no trace export."""


@dataclass(frozen=True)
class Span:
    """One span. `start`, `end`: seconds since the epoch, by the clock of the traced process."""

    name: str
    start: float
    end: float
    process: str = ""

    @property
    def seconds(self) -> float:
        return self.end - self.start


class SpanReceiver:
    """A server that gathers spans until it is closed; use it as a context manager."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._refused = 0
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._receive(self)

            def log_message(self, *arguments: object) -> None:
                """Says nothing: the terminal is the progress display's."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}{PATH}"

    def take(self) -> list[Span]:
        """The spans since the last call, by their start."""
        with self._lock:
            spans, self._spans = self._spans, []
        return sorted(spans, key=lambda span: span.start)

    @property
    def refused(self) -> int:
        """How many messages were no traces."""
        return self._refused

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> "SpanReceiver":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _receive(self, request: BaseHTTPRequestHandler) -> None:
        try:
            length = int(request.headers.get("Content-Length", "0"))
            if not 0 <= length <= LARGEST_BODY:
                raise TraceFormatError(f"a body of {length} bytes")
            body = request.rfile.read(length)
            if request.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            spans = list(parse_spans(body))
        except (ValueError, OSError, EOFError, zlib.error):
            with self._lock:
                self._refused += 1
            request.send_response(400)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        with self._lock:
            self._spans += spans
        request.send_response(200)
        request.send_header("Content-Type", "application/x-protobuf")
        request.send_header("Content-Length", "0")
        request.end_headers()


# --- the wire format ----------------------------------------------------------------------------


def parse_spans(body: bytes) -> Iterator[Span]:
    """The spans of an ExportTraceServiceRequest; TraceFormatError where it is none."""
    for number, resource_spans in _messages(body):
        if number != 1:
            continue
        process = ""
        for inner, part in _messages(resource_spans):
            if inner == 1:
                process = _process(part) or process
        for inner, part in _messages(resource_spans):
            if inner == 2:
                for deeper, span in _messages(part):
                    if deeper == 2:
                        yield _span(span, process)


def _process(resource: bytes) -> str:
    """The attribute with which vLLM says which of its processes this is."""
    for number, attribute in _messages(resource):
        if number != 1:
            continue
        fields = dict(_messages(attribute))
        if fields.get(1) == b"vllm.process_name":
            return dict(_messages(fields.get(2, b""))).get(1, b"").decode(errors="replace")
    return ""


def _span(body: bytes, process: str) -> Span:
    name, start, end = "", 0, 0
    for number, kind, value in _fields(body):
        if number == 5 and isinstance(value, bytes):
            name = value.decode(errors="replace")
        elif number in (7, 8) and kind == 1 and isinstance(value, int):
            start, end = (value, end) if number == 7 else (start, value)
    return Span(name, start / 1e9, end / 1e9, process)


def _messages(body: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields that hold bytes: messages and texts."""
    for number, _, value in _fields(body):
        if isinstance(value, bytes):
            yield number, value


def _fields(body: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(number, wire type, value) of each field."""
    position = 0
    while position < len(body):
        tag, position = _varint(body, position)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == 0:
            value, position = _varint(body, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            piece = body[position : position + size]
            if len(piece) < size:
                raise TraceFormatError("a number is cut off")
            (value,) = struct.unpack("<Q" if kind == 1 else "<I", piece)
            position += size
        elif kind == 2:
            length, position = _varint(body, position)
            value = body[position : position + length]
            if len(value) < length:
                raise TraceFormatError("a field is cut off")
            position += length
        else:
            raise TraceFormatError(f"there is no wire type {kind}")
        yield number, kind, value


def _varint(body: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(body) or shift > 63:
            raise TraceFormatError("a number is cut off")
        byte = body[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
