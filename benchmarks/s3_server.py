"""A small S3 for measurements: so cheap per request that what is measured is the client.

    python benchmarks/s3_server.py FOLDER PROCESSES        prints its address, and serves until its input ends

Objects are files in a folder (one on memory, such as /dev/shm, takes the disk out of the measurement). It answers what
the clients that are measured ask for: GET with ranges, HEAD, PUT, multipart uploads, ListObjectsV2, DELETE and the
conditions If-Match and If-None-Match. It checks no signature, so it listens on 127.0.0.1 only. Every process accepts
from the same socket, and has a thread for each connection.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from email.utils import formatdate
from typing import BinaryIO
from urllib.parse import parse_qsl, quote, unquote
from xml.sax.saxutils import escape

_CHUNK = 1 << 20
_HEADER = struct.Struct(">I")
_REASONS = {200: "OK", 204: "No Content", 206: "Partial Content", 404: "Not Found", 412: "Precondition Failed",
            416: "Range Not Satisfiable", 501: "Not Implemented"}  # fmt: skip
_NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


class Refused(Exception):
    """An answer other than success: its status and S3's code for it."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(status, code)
        self.status = status
        self.code = code


class Body:
    """The body of a request: read by length or by HTTP's chunks, and out of the frames of aws-chunked."""

    def __init__(self, file: BinaryIO, headers: dict[str, str]) -> None:
        self._file = file
        self._left = int(headers.get("content-length", 0))
        self._chunked = "chunked" in headers.get("transfer-encoding", "")
        self._framed = "aws-chunked" in headers.get("content-encoding", "")

    def pieces(self) -> Iterator[bytes]:
        yield from self._unframed() if self._framed else self._raw()

    def _raw(self) -> Iterator[bytes]:
        if not self._chunked:
            while self._left:
                piece = self._file.read(min(_CHUNK, self._left))
                if not piece:
                    raise ConnectionError
                self._left -= len(piece)
                yield piece
            return
        while size := int(self._file.readline().split(b";")[0], 16):
            yield self._file.read(size)
            self._file.readline()
        while self._file.readline().strip():
            pass

    def _unframed(self) -> Iterator[bytes]:
        held = bytearray()
        source = self._raw()
        wanted = -1
        for piece in source:
            held += piece
            while True:
                if wanted < 0:
                    line = held.find(b"\r\n")
                    if line < 0:
                        break
                    wanted = int(held[:line].split(b";")[0], 16)
                    del held[: line + 2]
                    if not wanted:
                        for _ in source:
                            pass
                        return
                if len(held) < wanted + 2:
                    break
                yield bytes(held[:wanted])
                del held[: wanted + 2]
                wanted = -1


class Server:
    """The objects below a folder, and one connection after another."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    # -- objects ------------------------------------------------------------------------------------------------------

    def _file(self, bucket: str, key: str) -> str:
        return os.path.join(self.folder, quote(bucket, safe=""), quote(key, safe=""))

    def _open(self, path: str) -> tuple[BinaryIO, dict[str, str], int, int]:
        """Return the open file of an object, its headers, where its content begins and how long it is."""
        try:
            file = open(path, "rb")  # noqa: SIM115 (the caller closes it)
        except FileNotFoundError:
            raise Refused(404, "NoSuchKey") from None
        start = _HEADER.unpack(file.read(_HEADER.size))[0]
        headers = json.loads(file.read(start - _HEADER.size))
        return file, headers, start, os.fstat(file.fileno()).st_size - start

    def _store(
        self, path: str, headers: dict[str, str], pieces: Iterator[bytes | str], only_new: bool, match: str | None
    ) -> str:
        if only_new and os.path.exists(path):
            for _ in pieces:
                pass
            raise Refused(412, "PreconditionFailed")
        etag = f'"{uuid.uuid4().hex}"'
        kept = {name: value for name, value in headers.items() if name.startswith("x-amz-meta-")}
        kept["content-type"] = headers.get("content-type", "binary/octet-stream")
        head = json.dumps({**kept, "etag": etag, "last-modified": formatdate(usegmt=True)}).encode()
        part = f"{self.folder}/.part-{uuid.uuid4().hex}"
        with open(part, "wb") as file:
            file.write(_HEADER.pack(len(head) + _HEADER.size) + head)
            file.flush()
            for piece in pieces:
                if isinstance(piece, str):
                    _append(file, piece)
                else:
                    file.write(piece)
        try:
            if match is not None:
                opened, found, _, _ = self._open(path)
                opened.close()
                if found["etag"] != match:
                    raise Refused(412, "PreconditionFailed")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if only_new:
                os.link(part, path)
            else:
                os.replace(part, path)
        except FileExistsError:
            raise Refused(412, "PreconditionFailed") from None
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
        return etag

    # -- requests -----------------------------------------------------------------------------------------------------

    def connection(self, sock: socket.socket) -> None:
        """Answer one request after another."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with sock, sock.makefile("rb", 1 << 18) as file, contextlib.suppress(ConnectionError, ValueError):
            while line := file.readline():
                method, target, _ = line.decode("latin-1").split(" ", 2)
                headers: dict[str, str] = {}
                while (line := file.readline()) not in (b"\r\n", b""):
                    name, _, value = line.decode("latin-1").partition(":")
                    headers[name.lower()] = value.strip()
                path, _, query = target.partition("?")
                bucket, _, key = unquote(path).lstrip("/").partition("/")
                if headers.get("expect", "").lower() == "100-continue":
                    sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = Body(file, headers)
                asked = dict(parse_qsl(query, keep_blank_values=True))
                try:
                    self._answer(sock, method, bucket, key, asked, headers, body)
                except Refused as refused:
                    text = f"<Error><Code>{refused.code}</Code><Message>{refused.code}</Message></Error>".encode()
                    _send(sock, refused.status, b"" if method == "HEAD" else text, {}, len(text))

    def _answer(
        self,
        sock: socket.socket,
        method: str,
        bucket: str,
        key: str,
        asked: dict[str, str],
        headers: dict[str, str],
        body: Body,
    ) -> None:
        path = self._file(bucket, key)
        if method in ("GET", "HEAD") and key:
            self._get(sock, method, path, headers)
        elif method == "GET":
            _send(sock, 200, self._list(bucket, asked), {"content-type": "application/xml"})
        elif method == "PUT" and not key:
            for _ in body.pieces():
                pass
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _send(sock, 200, b"", {})
        elif method == "PUT" and "partNumber" in asked:
            part = os.path.join(self.folder, f".upload-{asked['uploadId']}", f"{int(asked['partNumber']):05d}")
            with open(part, "wb") as file:
                for piece in body.pieces():
                    file.write(piece)
            _send(sock, 200, b"", {"etag": f'"{uuid.uuid4().hex}"'})
        elif method == "PUT":
            etag = self._store(
                path, headers, body.pieces(), headers.get("if-none-match") == "*", headers.get("if-match")
            )
            _send(sock, 200, b"", {"etag": etag})
        elif method == "POST" and "uploads" in asked:
            _send(sock, 200, self._begin(bucket, key, headers), {"content-type": "application/xml"})
        elif method == "POST" and "uploadId" in asked:
            for _ in body.pieces():
                pass
            _send(sock, 200, self._complete(path, asked["uploadId"], headers), {"content-type": "application/xml"})
        elif method == "DELETE":
            if "uploadId" in asked:
                shutil.rmtree(os.path.join(self.folder, f".upload-{asked['uploadId']}"), ignore_errors=True)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            _send(sock, 204, b"", {})
        else:
            for _ in body.pieces():
                pass
            raise Refused(501, "NotImplemented")

    def _get(self, sock: socket.socket, method: str, path: str, headers: dict[str, str]) -> None:
        file, found, start, size = self._open(path)
        with file:
            if headers.get("if-match", found["etag"]) != found["etag"]:
                raise Refused(412, "PreconditionFailed")
            first, last, status = 0, size - 1, 200
            answer = {**found, "accept-ranges": "bytes"}
            asked = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("range", ""))
            if asked and (asked[1] or asked[2]):
                if asked[1]:
                    first = int(asked[1])
                    last = min(int(asked[2]), size - 1) if asked[2] else size - 1
                else:
                    first = max(0, size - int(asked[2]))
                if first >= size:
                    raise Refused(416, "InvalidRange")
                status = 206
                answer["content-range"] = f"bytes {first}-{last}/{size}"
            length = last - first + 1
            small = method == "GET" and length <= 1 << 16
            content = os.pread(file.fileno(), length, start + first) if small else b""
            _send(sock, status, content, answer, length)
            if method == "GET" and not small:
                offset = start + first
                while length:
                    sent = os.sendfile(sock.fileno(), file.fileno(), offset, length)
                    offset += sent
                    length -= sent

    def _list(self, bucket: str, asked: dict[str, str]) -> bytes:
        folder = os.path.dirname(self._file(bucket, "x"))
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        after = asked.get("continuation-token", asked.get("start-after", ""))
        limit = int(asked.get("max-keys", 1000))
        keys = sorted(key for key in map(unquote, os.listdir(folder)) if key.startswith(prefix) and key > after)
        rows: list[str] = []
        groups: dict[str, None] = {}
        last, cut = "", False
        for key in keys:
            rest = key[len(prefix) :]
            group = prefix + rest[: rest.index(delimiter) + 1] if delimiter and delimiter in rest else ""
            if group and (group in groups or group <= after):
                last = key
                continue
            if len(rows) + len(groups) >= limit:
                cut = True
                break
            last = key
            if group:
                groups[group] = None
                continue
            file, found, _, size = self._open(self._file(bucket, key))
            file.close()
            changed = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
            rows.append(f"<Contents><Key>{quote(key)}</Key><Size>{size}</Size><ETag>{escape(found['etag'])}</ETag>"
                        f"<LastModified>{changed}</LastModified></Contents>")  # fmt: skip
        shared = "".join(f"<CommonPrefixes><Prefix>{quote(name)}</Prefix></CommonPrefixes>" for name in groups)
        more = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if cut else ""
        return (f"<ListBucketResult {_NAMESPACE}><Name>{bucket}</Name><Prefix>{quote(prefix)}</Prefix><EncodingType>url"
                f"</EncodingType><KeyCount>{len(rows) + len(groups)}</KeyCount><MaxKeys>{limit}</MaxKeys><IsTruncated>"
                f"{str(cut).lower()}</IsTruncated>{more}{''.join(rows)}{shared}"
                "</ListBucketResult>").encode()  # fmt: skip

    def _begin(self, bucket: str, key: str, headers: dict[str, str]) -> bytes:
        upload = uuid.uuid4().hex
        os.mkdir(os.path.join(self.folder, f".upload-{upload}"))
        with open(os.path.join(self.folder, f".upload-{upload}", "headers"), "w") as file:
            json.dump(headers, file)
        return (f"<InitiateMultipartUploadResult {_NAMESPACE}><Bucket>{bucket}</Bucket><Key>{escape(key)}</Key>"
                f"<UploadId>{upload}</UploadId></InitiateMultipartUploadResult>").encode()  # fmt: skip

    def _complete(self, path: str, upload: str, headers: dict[str, str]) -> bytes:
        folder = os.path.join(self.folder, f".upload-{upload}")
        parts = sorted(name for name in os.listdir(folder) if name != "headers")
        with open(os.path.join(folder, "headers")) as file:
            first = json.load(file)

        etag = self._store(
            path,
            first,
            (os.path.join(folder, name) for name in parts),
            headers.get("if-none-match") == "*",
            headers.get("if-match"),
        )
        shutil.rmtree(folder)
        name = "CompleteMultipartUploadResult"
        return f"<{name} {_NAMESPACE}><ETag>{escape(etag)}</ETag></{name}>".encode()


def _append(file: BinaryIO, path: str) -> None:
    """Append a file to another one, within the system."""
    with open(path, "rb") as part:
        left = os.fstat(part.fileno()).st_size
        while left:
            left -= os.sendfile(file.fileno(), part.fileno(), None, left)  # type: ignore[arg-type]


def _send(sock: socket.socket, status: int, content: bytes, headers: dict[str, str], length: int | None = None) -> None:
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Other')}", "x-amz-request-id: MEASURED"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"content-length: {len(content) if length is None else length}")
    sock.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + content)


def main() -> None:
    folder, processes = sys.argv[1], int(sys.argv[2])
    os.makedirs(folder, exist_ok=True)
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    children = []
    for _ in range(processes):
        pid = os.fork()
        if not pid:
            server = Server(folder)
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=server.connection, args=(connection,), daemon=True).start()
        children.append(pid)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    sys.stdin.read()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
