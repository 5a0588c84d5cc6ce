"""A small Hub on the loopback interface, for the real client: repositories, branches, LFS, pull requests, refusals.

Its LFS files are redirected to another origin ("localhost" instead of "127.0.0.1"), which must not see the token.
"""

import atexit
import base64
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

WRITE, READ = "hf_write", "hf_read"  # the tokens that the server knows


@dataclass
class Repository:
    """Commits with all their files, and what points at them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes | None], message: str, ref: str = "main") -> str:
        """Add a commit that replaces, adds or (None) deletes files on top of a branch."""
        changed = {**self.commits.get(self.refs.get(ref, ""), {}), **files}
        tree = {path: data for path, data in changed.items() if data is not None}
        oid = hashlib.sha1(f"{len(self.commits)} {ref} {sorted(tree.items())}".encode()).hexdigest()
        self.commits[oid], self.refs[ref] = tree, oid
        self.messages.append(message)
        return oid

    def resolve(self, revision: str) -> str | None:
        """Return the commit that a branch, tag or commit names."""
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a revision."""
        return self.commits[self.refs.get(revision, revision)]


class LoopbackHub:
    """The server and its state; `requests` holds method, path, host and token of each request since `forget`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str, str | None]] = []
        self.failures: list[tuple[str, str, int]] = []  # method, part of the path, status; each is used once
        self.before_commit: list = []  # functions that are called once, before the next commit is taken
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.port = self.server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def create(self, name: str, *, private: bool = False, gated: bool = False, **files: bytes) -> Repository:
        """Make a repository with a first commit."""
        self.repositories[name] = Repository(private, gated)
        self.repositories[name].commit({"README.md": b"", ".gitattributes": b"", **files}, "initial commit")
        del self.repositories[name].commits[self.repositories[name].refs["main"]]["README.md"]
        return self.repositories[name]

    def forget(self) -> None:
        """Forget all repositories, requests and planned failures."""
        for state in (self.repositories, self.blobs, self.requests, self.failures, self.before_commit):
            state.clear()

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()


@cache
def served() -> LoopbackHub:
    """Return a server that the Hub's client of this process asks, so that it can reach no other.

    Call it before anything is imported that imports huggingface_hub, which reads its settings once.
    """
    hub, home = LoopbackHub(), tempfile.mkdtemp(prefix="unlearning-adapters-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ.update(
        HF_ENDPOINT=hub.endpoint,
        HF_HOME=home,
        HF_HUB_DISABLE_XET="1",  # files go through LFS, which the server knows
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
    )
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        os.environ.pop(name, None)
    return hub


class _Refusal(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        self.query, path = parse_qs(url.query), unquote(url.path)
        self.body = self._read_body()
        header = self.headers.get("Authorization")
        self.token = header.removeprefix("Bearer ") if header else None
        self.hub.requests.append((self.command, path, (self.headers.get("Host") or "").split(":")[0], self.token))
        for failure in self.hub.failures:
            if failure[0] == self.command and failure[1] in path:
                self.hub.failures.remove(failure)
                return self._answer(failure[2], {"error": "injected"}, {"X-Error-Message": "injected"})
        try:
            for method, pattern, action in _ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method:
                    return action(self, *match.groups())
            raise _Refusal(404, "", f"no route for {self.command} {path}")
        except _Refusal as refusal:
            extra = {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)}
            self._answer(refusal.status, {"error": str(refusal)}, extra)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def _read_body(self) -> bytes:
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, body: object = b"", headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _repository(self, name: str, *, write: bool = False, files: bool = False) -> Repository:
        found = self.hub.repositories.get(name)
        if self.token not in (None, WRITE, READ):
            raise _Refusal(401, "", "Invalid credentials")
        if found is None or (found.private and self.token is None):
            raise _Refusal(404 if self.token else 401, "RepoNotFound", "Repository not found")
        if write and self.token != WRITE:
            raise _Refusal(403 if self.token else 401, "", "no permission to write")
        if files and found.gated and self.token != WRITE:
            raise _Refusal(403 if self.token else 401, "GatedRepo", "access to it is restricted")
        return found

    def _commit_of(self, repository: Repository, revision: str) -> str:
        oid = repository.resolve(unquote(revision))
        if oid is None:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid

    def create(self) -> None:
        wanted = json.loads(self.body)
        name = "/".join(part for part in (wanted.get("organization"), wanted["name"]) if part)
        if self.token != WRITE:
            raise _Refusal(403 if self.token == READ else 401, "", "no permission to create")
        url = {"url": f"{self.hub.endpoint}/{name}", "name": name}
        if name in self.hub.repositories:
            return self._answer(409, {"error": "You already created this model repo", **url})
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self.hub.create(name, private=private)
        self._answer(200, url)

    def info(self, name: str, revision: str | None = None) -> None:
        repository = self._repository(name)
        oid = self._commit_of(repository, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(repository.commits[oid])]
        told = {
            "id": name,
            "modelId": name,
            "sha": oid,
            "private": repository.private,
            "siblings": siblings,
            "tags": [],
        }
        self._answer(200, told)

    def tree(self, name: str, revision: str) -> None:
        repository = self._repository(name)
        files = repository.commits[self._commit_of(repository, revision)]
        self._answer(
            200, [{"type": "file", "path": p, "size": len(b), "oid": _git_oid(b)} for p, b in sorted(files.items())]
        )

    def branch(self, name: str, branch: str) -> None:
        repository = self._repository(name, write=True)
        if branch in repository.refs:
            raise _Refusal(409, "", "Reference already exists")
        start = (json.loads(self.body or b"{}") or {}).get("startingPoint") or "main"
        repository.refs[branch] = self._commit_of(repository, start)
        self._answer(200, {})

    def tag(self, name: str, revision: str) -> None:
        repository = self._repository(name, write=True)
        tag = json.loads(self.body)["tag"]
        if tag in repository.refs:
            raise _Refusal(409, "", "Reference already exists")
        repository.refs[tag] = self._commit_of(repository, revision)
        self._answer(200, {})

    def validate(self) -> None:
        self._answer(200, {"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        opened = "create_pr" in self.query
        repository = self._repository(name, write=not opened)
        files = repository.commits[self._commit_of(repository, revision)]
        answers = []
        for item in json.loads(self.body)["files"]:
            large = item["path"].endswith((".safetensors", ".mp4"))
            present = files.get(item["path"])
            oid = None if present is None else (hashlib.sha256(present).hexdigest() if large else _git_oid(present))
            mode = "lfs" if large else "regular"
            answers.append({"path": item["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer(200, {"files": answers})

    def batch(self, name: str) -> None:
        self._repository(name)
        objects = []
        for item in json.loads(self.body)["objects"]:
            put = {"href": f"http://localhost:{self.hub.port}/cdn/{item['oid']}"}
            verify = {"href": f"{self.hub.endpoint}/{name}.git/info/lfs/verify"}
            actions = {} if item["oid"] in self.hub.blobs else {"actions": {"upload": put, "verify": verify}}
            objects.append({**item, **actions})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refusal(400, "", "wrong checksum")
        self.hub.blobs[oid] = self.body
        self._answer(200)

    def fetch(self, oid: str) -> None:
        self._answer(200, self.hub.blobs[oid])

    def verify(self, name: str) -> None:
        self._repository(name)
        self._answer(200, {})

    def commit(self, name: str, revision: str) -> None:
        opened = "create_pr" in self.query
        repository = self._repository(name, write=not opened)
        while self.hub.before_commit:
            self.hub.before_commit.pop()()
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header = lines[0]["value"]
        head = self._commit_of(repository, revision)
        if header.get("parentCommit") not in (None, head):
            raise _Refusal(412, "", "A commit has happened since. Please refresh and try again.")
        content = {
            "file": lambda value: base64.b64decode(value["content"]),
            "lfsFile": lambda value: self.hub.blobs[value["oid"]],
            "deletedFile": lambda value: None,
        }
        files = {line["value"]["path"]: content[line["key"]](line["value"]) for line in lines[1:]}
        ref = unquote(revision)
        if opened:
            number = 1 + sum(key.startswith("refs/pr/") for key in repository.refs)
            ref = f"refs/pr/{number}"
            repository.refs[ref] = head
        oid = repository.commit(files, header["summary"], ref)
        told = {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}"}
        told |= {"pullRequestUrl": f"{self.hub.endpoint}/{name}/discussions/{ref.split('/')[-1]}"} if opened else {}
        self._answer(200, told)

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._repository(name, files=True)
        oid = self._commit_of(repository, revision)
        data = repository.commits[oid].get(path)
        if data is None:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": oid, "ETag": f'"{_git_oid(data)}"'}
        if not path.endswith((".safetensors", ".mp4")):
            return self._answer(200, data, headers)
        digest = hashlib.sha256(data).hexdigest()
        self.hub.blobs[digest] = data
        headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        self._answer(302, b"", {**headers, "Location": f"http://localhost:{self.hub.port}/cdn/{digest}"})


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("GET", f"/api/models/{_NAME}", _Handler.info),
    ("GET", f"/api/models/{_NAME}/revision/(.+)", _Handler.info),
    ("GET", f"/api/models/{_NAME}/tree/(refs/pr/[0-9]+|[^/]+)", _Handler.tree),
    ("POST", f"/api/models/{_NAME}/branch/(.+)", _Handler.branch),
    ("POST", f"/api/models/{_NAME}/tag/(.+)", _Handler.tag),
    ("POST", f"/api/models/{_NAME}/preupload/(.+)", _Handler.preupload),
    ("POST", f"/api/models/{_NAME}/commit/(.+)", _Handler.commit),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("POST", rf"/{_NAME}\.git/info/lfs/verify", _Handler.verify),
    ("PUT", "/cdn/([0-9a-f]+)", _Handler.store),
    ("GET HEAD", "/cdn/([0-9a-f]+)", _Handler.fetch),
    ("GET HEAD", rf"/{_NAME}/resolve/(refs/pr/[0-9]+|[^/]+)/(.+)", _Handler.resolve),
)
