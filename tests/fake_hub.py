"""A hub on loopback: takes a repository and a commit as huggingface_hub sends them.

with FakeHub() as hub:
    run(env={"HF_ENDPOINT": hub.url, ...})
hub.files["org/name"]["config.json"]   # bytes
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeHub:
    """What was uploaded: files by repository, and what was asked when they were made."""

    def __init__(self, token: str = "hf_of_a_test"):
        self.token = token
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self._body()
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._reply({"error": "Invalid username or password."}, 401)
        for pattern, answer in (
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", lambda _: {"errors": [], "warnings": []}),
            (r"/api/models/(.+)/preupload/main", self._preupload),
            (r"/(.+)\.git/info/lfs/objects/batch", self._batch),
            (r"/verify", lambda _: {}),
            (r"/api/models/(.+)/commit/main", self._commit),
        ):
            match = re.fullmatch(pattern, self.path)
            if match:
                return self._reply(answer(body, *match.groups()))
        return self._reply({"error": f"no {self.path}"}, 404)

    def do_GET(self):
        self._reply({"error": "not found"}, 404)

    def do_PUT(self):
        oid, data = self.path.rsplit("/", 1)[1], self._body()
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.objects[oid] = data
        self._reply({})

    def _create(self, body):
        asked = json.loads(body)
        self.hub.created.append(asked)
        name = asked["name"]
        full = f"{asked['organization']}/{name}" if asked.get("organization") else name
        return {"url": f"{self.hub.url}/{full}", "id": full, "name": full}

    def _preupload(self, body, _):
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
        }

    def _batch(self, body, _):
        objects = [
            {
                "oid": wanted["oid"],
                "size": wanted["size"],
                "actions": {
                    "upload": {"href": f"{self.hub.url}/upload/{wanted['oid']}", "header": {}},
                    "verify": {"href": f"{self.hub.url}/verify", "header": {}},
                },
            }
            for wanted in json.loads(body)["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def _commit(self, body, repo):
        files = self.hub.files.setdefault(repo, {})
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        return {"commitUrl": f"{self.hub.url}/{repo}/commit/{'a' * 40}", "commitOid": "a" * 40}

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _reply(self, answer: dict, code: int = 200) -> None:
        content = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass
