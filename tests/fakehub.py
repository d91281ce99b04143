"""A stand-in for the Hugging Face Hub on 127.0.0.1: what pushing, listing and downloading repositories needs.

Repositories of models, datasets and spaces are plain folders, so that a test may fill one by hand and look into it.
There is one branch, main, of which only the newest commit is kept; its hash is that of the contents. Safetensors,
Parquet and .bin files are uploaded as LFS does it, all others inside the commit. Every token is good.
"""

import base64
import hashlib
import json
import re
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

LFS_SUFFIXES = (".safetensors", ".parquet", ".bin")


class FakeHub:
    """`with FakeHub(folder) as hub:` serves the repositories under `folder`/models, /datasets and /spaces.

    `url` is the server's address, `requests` what it was asked for so far, in order: ["GET /api/whoami-v2", ...].
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.requests: list[str] = []
        self.lock = threading.Lock()  # requests are answered one at a time
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def environment(self) -> dict[str, str]:
        """Variables that make a new process use this Hub, with a cache of its own; they are read at import.

        As a proxy it gets, refuses and writes down what is meant for other hosts too.
        """
        home = self.folder / "home"
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": "hf_fake",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "http_proxy": self.url,
            "https_proxy": self.url,
            "no_proxy": "127.0.0.1",
        }

    def files(self, name: str, kind: str = "models") -> dict[str, bytes]:
        """Contents of the files of a repository, "organisation/name", by their paths in it; empty if there is none."""
        root = self.folder / kind / name
        paths = (path for path in sorted(root.rglob("*")) if path.is_file())
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}

    def commit(self, name: str, kind: str = "models") -> str:
        """Hash of the newest commit."""
        hashes = [(path, sha1(content)) for path, content in self.files(name, kind).items()]
        return sha1(json.dumps(hashes).encode())


def sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class Refusal(Exception):
    """A status, the Hub's own error code, from which its client makes the exception, and what else the answer says."""


class Handler(BaseHTTPRequestHandler):
    """One connection to a `FakeHub`. A method named in ROUTES answers with JSON, or bytes for a file."""

    protocol_version = "HTTP/1.1"
    NAMED = r"(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
    PAGE = r"(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)"
    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_card"),
        ("POST", r"/api/repos/create", "create"),
        ("GET", rf"/api/{NAMED}(?:/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", rf"/api/{NAMED}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
        ("POST", rf"/api/{NAMED}/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("POST", rf"/api/{NAMED}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"/api/{NAMED}/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", rf"/{PAGE}\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<path>[^/]+)", "lfs_upload"),
        ("GET", rf"/{PAGE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "download"),
    )

    def __init__(self, hub: FakeHub, *arguments):
        self.hub = hub
        super().__init__(*arguments)

    def answer(self):
        path, _, query = self.path.partition("?")
        self.query, self.body, self.headers_out, status = parse_qs(query), self.read_body(), {}, 200
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {unquote(path)}")
            try:
                said = self.route(path)
            except Refusal as refusal:
                status, code, said = refusal.args
                self.headers_out["X-Error-Code"] = code
        content = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        for name, value in {**self.headers_out, "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_CONNECT = answer

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def route(self, path: str):
        """Notes which repository (`kind`, `name`, its folder `root`) and `place` in it are meant, and answers."""
        for method, pattern, reply in self.ROUTES:
            found = re.fullmatch(pattern, path)
            if found is None or method != self.command.replace("HEAD", "GET"):
                continue
            parts = {name: unquote(value) for name, value in found.groupdict().items() if value}
            self.kind, self.place = parts.get("kind", "models"), parts.get("path", "")
            if "name" in parts:
                self.name = parts["name"]
                self.root = self.hub.folder / self.kind / self.name
                if not self.root.is_dir():
                    raise Refusal(404, "RepoNotFound", {"error": f"no repository {self.name}"})
                newest = self.hub.commit(self.name, self.kind)
                if parts.get("revision", "main") not in ("main", newest):
                    raise Refusal(404, "RevisionNotFound", {"error": f"no revision {parts['revision']}"})
                self.headers_out["X-Repo-Commit"] = newest
            return getattr(self, reply)()
        raise Refusal(404, "NotServed", {"error": f"the stand-in does not serve {path}"})

    def whoami(self):
        return {"name": "tester", "type": "user", "orgs": []}

    def validate_card(self):
        return {"errors": [], "warnings": []}

    def create(self):
        asked = json.loads(self.body)
        kind, name = f"{asked.get('type') or 'model'}s", f"{asked.get('organization') or 'tester'}/{asked['name']}"
        created = {"id": name, "name": name, "url": self.page(kind, name)}
        if (self.hub.folder / kind / name).exists():
            raise Refusal(409, "RepoExists", created)
        (self.hub.folder / kind / name).mkdir(parents=True)
        return created

    def page(self, kind: str, name: str) -> str:
        return f"{self.hub.url}/{name}" if kind == "models" else f"{self.hub.url}/{kind}/{name}"

    def info(self):
        siblings = [{"rfilename": path} for path in self.hub.files(self.name, self.kind)]
        return {"_id": "1", "id": self.name, "sha": self.hub.commit(self.name, self.kind), "siblings": siblings}

    def tree(self):
        if not (self.root / self.place).is_dir():
            raise Refusal(404, "EntryNotFound", {"error": f"no folder {self.place}"})
        deep = self.query.get("recursive", ["false"])[0].lower() == "true"
        return [self.entry(path) for path in sorted((self.root / self.place).glob("**/*" if deep else "*"))]

    def paths_info(self):
        paths = [self.root / path for path in parse_qs(self.body.decode())["paths"]]
        return [self.entry(path) for path in paths if path.exists()]

    def entry(self, path: Path) -> dict:
        kind, content = ("directory", b"") if path.is_dir() else ("file", path.read_bytes())
        place = path.relative_to(self.root).as_posix()
        return {"type": kind, "path": place, "size": len(content), "oid": sha1(content)}

    def preupload(self):
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = ["lfs" if path.endswith(LFS_SUFFIXES) else "regular" for path in paths]
        each = zip(paths, modes, strict=True)
        return {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in each]}

    def lfs_batch(self):
        objects = json.loads(self.body)["objects"]
        for each in objects:
            each["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def lfs_upload(self):
        if hashlib.sha256(self.body).hexdigest() != self.place:
            raise Refusal(400, "BadHash", {"error": "the contents do not have this hash"})
        (self.hub.folder / "lfs").mkdir(exist_ok=True)
        (self.hub.folder / "lfs" / self.place).write_bytes(self.body)
        return {}

    def commit(self):
        for line in self.body.splitlines():
            operation, value = (json.loads(line)[field] for field in ("key", "value"))
            path = self.root / value.get("path", "")
            if operation == "deletedFile":
                path.unlink()
            elif operation in ("file", "lfsFile"):
                path.parent.mkdir(parents=True, exist_ok=True)
                lfs = self.hub.folder / "lfs" / value.get("oid", "")
                path.write_bytes(lfs.read_bytes() if operation == "lfsFile" else base64.b64decode(value["content"]))
            elif operation != "header":
                raise Refusal(400, "NotServed", {"error": f"the stand-in does not serve {operation}"})
        oid = self.hub.commit(self.name, self.kind)
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.page(self.kind, self.name)}/commit/{oid}"}

    def download(self):
        if not (self.root / self.place).is_file():
            raise Refusal(404, "EntryNotFound", {"error": f"no file {self.place}"})
        content = (self.root / self.place).read_bytes()
        self.headers_out["ETag"] = f'"{sha1(content)}"'
        return content

    def log_message(self, *_):
        """Nothing on the terminal: `FakeHub.requests` has it all."""
