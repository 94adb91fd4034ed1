"""A small OCI registry on loopback that can be told to misbehave: what hostile and broken registries do."""

import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from dataclasses import dataclass, field


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass
class Registry:
    """What lies in it, what was asked of it, and what it is to do wrong.

    `faults` are called with the handler before it answers; one that returns True has answered itself.
    """

    blobs: dict = field(default_factory=dict)
    manifests: dict = field(default_factory=dict)
    uploads: dict = field(default_factory=dict)
    requests: list = field(default_factory=list)
    headers: list = field(default_factory=list)
    faults: list = field(default_factory=list)
    login: str = ""
    token: str = ""
    hide_digest: bool = False

    def start(self):
        registry = self

        methods = {f"do_{name}": _Handler.handle_any for name in ("GET", "HEAD", "POST", "PUT", "PATCH")}
        handler = type("Handler", (_Handler,), {"registry": registry, **methods})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        return self

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def image(self, name="v1"):
        return json.loads(self.manifests[name])

    def put_image(self, image, name="v1"):
        """Another manifest under the tag, whose digest is right."""
        data = image if isinstance(image, bytes) else json.dumps(image, separators=(",", ":")).encode()
        self.manifests[name] = self.manifests[digest_of(data)] = data
        return digest_of(data)

    def layer(self, path, name="v1"):
        return next(one for one in self.image(name)["layers"] if path in one["annotations"].values())


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: Registry

    def log_message(self, *_):
        pass

    def send(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self):
        registry = self.registry
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        registry.requests.append(f"{self.command} {self.path}")
        registry.headers.append(dict(self.headers.items()))
        if any(fault(self) for fault in list(registry.faults)):
            return
        if self.path.startswith("/token"):
            right = not registry.login or self.headers.get("Authorization") == registry.login
            return self.send(200, json.dumps({"token": registry.token}).encode()) if right else self.send(401)
        if registry.token and self.headers.get("Authorization") != f"Bearer {registry.token}":
            realm = f'Bearer realm="http://{registry.host}/token",service="own"'
            return self.send(401, WWW_Authenticate=realm)
        if registry.login and not registry.token and self.headers.get("Authorization") != registry.login:
            return self.send(401, WWW_Authenticate='Basic realm="own"')
        path, _, query = self.path.partition("?")
        found = re.fullmatch(r"/v2/(.+)/(blobs/uploads/|blobs/uploads/[^/]+|blobs/[^/]+|manifests/[^/]+)", path)
        if not found:
            return self.send(404)
        kind, _, last = found[2].rpartition("/")
        act = {"blobs": self.blob, "manifests": self.manifest, "blobs/uploads": self.upload}[kind]
        return act(last, urllib.parse.parse_qs(query))

    def blob(self, digest, _):
        data = self.registry.blobs.get(digest)
        if data is None:
            return self.send(404)
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if begin and int(begin[1]) < len(data):
            part = f"bytes {begin[1]}-{len(data) - 1}/{len(data)}"
            return self.send(206, data[int(begin[1]) :], Content_Range=part)
        return self.send(200, data)

    def manifest(self, name, _):
        manifests = self.registry.manifests
        if self.command == "PUT":
            self.registry.put_image(self.body, name)
            return self.send(201, Docker_Content_Digest=digest_of(self.body))
        if name not in manifests:
            words = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
            return self.send(404, json.dumps(words).encode())
        named = {} if self.registry.hide_digest else {"Docker_Content_Digest": digest_of(manifests[name])}
        return self.send(200, manifests[name], Content_Type="application/vnd.oci.image.manifest.v1+json", **named)

    def upload(self, name, query):
        uploads = self.registry.uploads
        if self.command == "POST":
            name = str(len(uploads))
            uploads[name] = b""
            return self.send(202, Location=f"/v2/x/blobs/uploads/{name}?state=1")
        have = uploads[name]
        if self.command == "PATCH":
            start = int(self.headers["Content-Range"].partition("-")[0])
            if start != len(have):
                return self.send(416)
            uploads[name] = have + self.body
        if self.command == "PUT":
            if digest_of(have + self.body) != query["digest"][0]:
                return self.send(400)
            self.registry.blobs[query["digest"][0]] = have + self.body
            return self.send(201, Docker_Content_Digest=query["digest"][0])
        place = f"http://{self.headers['Host']}/v2/x/blobs/uploads/{name}?state=2"
        status = 204 if self.command == "GET" else 202
        return self.send(status, Location=place, Range=f"0-{max(0, len(uploads[name]) - 1)}")
