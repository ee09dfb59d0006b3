"""An object store on loopback that speaks enough of Google Cloud Storage's JSON API for gcsfs and
TensorStore: objects are whole, cannot be appended to or renamed, and every range read is noted.

with FakeGcs() as store, store.reached():
    (epath.Path("gs://bucket/a") / "b").write_text("c")
store.objects["a/b"]      # b"c"
store.reads               # [Read("a/b", 0, 1)]

One bucket, of any name. Uploads of objects in `forbidden` are refused.
"""

import base64
import contextlib
import hashlib
import itertools
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit


class Read(NamedTuple):
    """Bytes [start, stop) of an object, as they were asked for and given."""

    name: str
    start: int
    stop: int


class FakeGcs:
    """The objects of one bucket, and what was read of them."""

    def __init__(self):
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, int] = {}
        self.reads: list[Read] = []
        self.uploads: list[str] = []
        self.forbidden: set[str] = set()
        self.partial: dict[str, tuple[str, bytearray]] = {}
        self.lock = threading.Lock()
        self.counter = itertools.count(1)
        handler = type("Handler", (_Handler,), {"store": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FakeGcs":
        # It looks for its end that often (s).
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What makes both clients, of any process, come here."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "FSSPEC_GCS_TOKEN": "anon",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        }

    @contextlib.contextmanager
    def reached(self) -> Iterator[None]:
        """Makes this process's clients, and those of processes that it starts, come here."""
        import fsspec
        from etils import epath

        before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        forget = [fsspec.get_filesystem_class("gcs").clear_instance_cache]
        forget.append(epath.backend.fsspec_backend._get_filesystem.cache_clear)
        for clear in forget:
            clear()
        fsspec.config.set_conf_env(fsspec.config.conf)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
            fsspec.config.conf.pop("gcs", None)
            for clear in forget:
                clear()

    def put(self, name: str, data: bytes) -> dict:
        """Stores an object whole; its metadata."""
        with self.lock:
            self.objects[name] = data
            self.generations[name] = next(self.counter)
            self.uploads.append(name)
        return self.metadata(name)

    def put_folder(self, folder: Path, name: str) -> None:
        """Stores the files of a folder under a name."""
        for file in (path for path in folder.rglob("*") if path.is_file()):
            self.put(f"{name}/{file.relative_to(folder)}", file.read_bytes())

    def metadata(self, name: str) -> dict:
        data, generation = self.objects[name], str(self.generations[name])
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": "bucket",
            "size": str(len(data)),
            "generation": generation,
            "metageneration": "1",
            "etag": generation,
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }

    def bytes_read(self, ending: str = "") -> int:
        """Bytes given away of objects whose names end so."""
        return sum(read.stop - read.start for read in self.reads if read.name.endswith(ending))


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is no fault of the server's."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    store: FakeGcs
    protocol_version = "HTTP/1.1"
    # An answer is one packet, sent at once: else its body waits 40 ms until its head is confirmed.
    wbufsize = -1
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        split = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0) or 0))
        for method, pattern, answer in self.routes:
            match = re.fullmatch(pattern, split.path)
            if match and self.command in method.split("|"):
                return answer(self, query, body, *map(unquote, match.groups()))
        return self._json({"error": {"code": 404, "message": f"no route {self.path}"}}, 404)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    # --- objects

    def _bucket(self, query, body, bucket):
        self._json({"kind": "storage#bucket", "name": bucket, "id": bucket, "location": "HERE"})

    def _list(self, query, body, bucket):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        start, end = query.get("startOffset", ""), query.get("endOffset")
        found, folders = [], set()
        for name in sorted(self.store.objects):
            if not name.startswith(prefix) or name < start or (end and name >= end):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest[: rest.index(delimiter) + 1])
            else:
                found.append(name)
        items = [self.store.metadata(name) for name in found[: int(query.get("maxResults", 1000))]]
        self._json({"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})

    def _get(self, query, body, bucket, name):
        if name not in self.store.objects:
            return self._absent(name)
        if query.get("alt") != "media":
            return self._json(self.store.metadata(name))
        if self._refused(query, name, reading=True):
            return None
        data = self.store.objects[name]
        start, stop, code = 0, len(data), 200
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = asked.groups()
            start = int(first) if first else max(0, len(data) - int(last))
            stop = min(len(data), int(last) + 1) if first and last else len(data)
            code = 206
            if start >= len(data):
                return self._reply(b"", 416, {"Content-Range": f"bytes */{len(data)}"})
        self.store.reads.append(Read(name, start, stop))
        generation = str(self.store.generations[name])
        headers = {"x-goog-generation": generation, "ETag": generation}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return self._reply(data[start:stop], code, headers)

    def _delete(self, query, body, bucket, name):
        if self._refused(query, name):
            return
        with self.store.lock:
            found = self.store.objects.pop(name, None)
        self._reply(b"", 204) if found is not None else self._absent(name)

    def _copy(self, query, body, bucket, name, to_bucket, to_name):
        if name not in self.store.objects:
            return self._absent(name)
        resource = self.store.put(to_name, self.store.objects[name])
        return self._json({"done": True, "resource": resource})

    def _upload(self, query, body, bucket):
        kind = query.get("uploadType")
        if kind == "media":
            if not self._refused(query, query["name"]):
                self._json(self.store.put(query["name"], body))
        elif kind == "multipart":
            boundary = re.search('boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            parts = body.split(b"--" + boundary)
            described, data = (_content(part) for part in (parts[1], b"--".join(parts[2:-1])))
            name = json.loads(described)["name"]
            if not self._refused(query, name):
                self._json(self.store.put(name, data))
        elif not self._refused(query, name := query.get("name") or json.loads(body)["name"]):
            number = str(next(self.store.counter))
            self.store.partial[number] = name, bytearray()
            self._reply(b"", 200, {"Location": f"{self.store.url}/resumable/{number}"})

    def _resume(self, query, body, number):
        data = self.store.partial[number][1]
        data += body
        total = self.headers["Content-Range"].rpartition("/")[2]
        if total == "*" or len(data) < int(total):
            return self._reply(b"", 308, {"Range": f"bytes=0-{len(data) - 1}"})
        return self._json(self.store.put(self.store.partial.pop(number)[0], bytes(data)))

    def _batch(self, query, body):
        boundary = re.search('boundary="?([^"]+)', self.headers["Content-Type"])[1]
        answers = []
        for path in re.findall(r"DELETE (\S+) HTTP", body.decode()):
            name = unquote(re.search(r"/o/([^?]+)", path)[1])
            found = self.store.objects.pop(name, None)
            code = "204 No Content" if found is not None else "404 Not Found"
            answers.append(f"--{boundary}\nContent-Type: application/http\n\nHTTP/1.1 {code}\n\n")
        text = "\n".join(answers) + f"\n--{boundary}--"
        self._reply(text.encode(), 200, {"Content-Type": f"multipart/mixed; boundary={boundary}"})

    routes = (
        ("GET", r"(?:/storage/v1)?/b/([^/]+)", _bucket),
        ("GET", r"/storage/v1/b/([^/]+)/o/?", _list),
        ("GET", r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)", _get),
        ("DELETE", r"/storage/v1/b/([^/]+)/o/([^/]+)", _delete),
        ("POST", r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/(.+)", _copy),
        ("POST|PUT", r"/upload/storage/v1/b/([^/]+)/o", _upload),
        ("POST|PUT", r"/resumable/(\d+)", _resume),
        ("POST", r"/batch/storage/v1", _batch),
        ("GET", r"/storage/v1/b/([^/]+)", _bucket),
    )

    # --- answers

    def _refused(self, query, name, reading=False) -> bool:
        """Whether a condition on the object's generation does not hold (and says so)."""
        if not reading and name in self.store.forbidden:
            self._json({"error": {"code": 403, "message": "Forbidden"}}, 403)
            return True
        now = str(self.store.generations[name]) if name in self.store.objects else "0"
        if query.get("ifGenerationMatch", now) != now:
            self._json({"error": {"code": 412, "message": "conditionNotMet"}}, 412)
            return True
        if reading and query.get("ifGenerationNotMatch") == now:
            self._reply(b"", 304)
            return True
        return False

    def _absent(self, name):
        self._json({"error": {"code": 404, "message": f"No such object: {name}"}}, 404)

    def _json(self, answer: dict, code: int = 200) -> None:
        self._reply(json.dumps(answer).encode(), code, {"Content-Type": "application/json"})

    def _reply(self, content: bytes, code: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if code not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if code not in (204, 304):
            self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


def _content(part: bytes) -> bytes:
    """What a part of a multipart body holds, without its headers and the last line break."""
    ends = [(part.index(end) + len(end), end) for end in (b"\n\n", b"\r\n\r\n") if end in part]
    start, end = min(ends)
    return part[start:].removesuffix(end[: len(end) // 2])
