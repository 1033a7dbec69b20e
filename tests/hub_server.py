# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
A Hugging Face Hub for tests: on loopback, in memory, and it speaks the protocol of the real `huggingface_hub` client.

    with HubServer(token="hf_test") as server:
        subprocess.run([sys.executable, "-c", script], env=client_environment(server, cache_dir, token="hf_test"))
        assert "config.json" in server.files("user/tiny")

The client reads its settings when it is imported, so clients run in processes of their own, in the environment that
`client_environment` makes (or in those of `processes.py`, where it is made before the import). It sets `HF_HUB_DISABLE_XET`: with `hf_xet` installed, the client uploads through Xet
whatever the server says; without, and as this server never announces Xet, it uses plain LFS.

As on the real Hub, LFS files are kept by a second server, the storage, which asks for a signed URL and not for a token.
`/<repo>/resolve/<revision>/<file>` redirects there, and the LFS batch API hands out its addresses. A fault in the
transfer of a large file is therefore a fault of the path `/storage/<repo>/<sha256>`, in a download followed by
`/<file>`, and not of `/resolve/`.

Not supported: data sets and spaces, Xet, multipart uploads, pull requests, deletion of repositories and references,
gated and moved repositories, pagination, rights on namespaces, and YAML (`model_info` has no `card_data` and the like).
"""

import base64
import hashlib
import json
import os
import re
import socket
import struct
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from urllib.parse import parse_qs, quote, unquote, urlsplit


LFS_SUFFIXES = (".bin", ".ckpt", ".pkl", ".png", ".pt", ".pth", ".safetensors")
LFS_SIZE = 10 * 2**20
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
DATE = "2026-01-01T00:00:00.000Z"
FAULTS = ("status", "reset", "lost", "truncate", "corrupt", "delay")


def is_lfs(path: str, size: int) -> bool:
    """Whether this Hub keeps a file in LFS. An empty file is never: the client does not upload it there."""
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_SIZE)


def git_hash(data: bytes, kind: str = "blob") -> str:
    """The id that git gives to the content of a file."""
    return hashlib.sha1(b"%s %d\0" % (kind.encode(), len(data)) + data).hexdigest()


def file_info(path: str, data: bytes) -> dict:
    """What a tree says about a file. In git, an LFS file is a pointer to its content."""
    info = {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
    if is_lfs(path, len(data)):
        oid = hashlib.sha256(data).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n".encode()
        lfs = {"oid": oid, "sha256": oid, "size": len(data), "pointerSize": len(pointer)}
        info |= {"oid": git_hash(pointer), "lfs": lfs}
    return info


def damage(data: bytes, kind: str) -> bytes:
    """A body as it arrives after a fault of this kind."""
    half = len(data) // 2
    return data[:half] + (bytes(byte ^ 255 for byte in data[half:]) if kind == "corrupt" else b"")


class HubError(Exception):
    """An answer that refuses the request, with the headers from which the client chooses its exception."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None, **body):
        super().__init__(message)
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.status, self.body = status, {"error": message, **body}


@dataclass
class Repository:
    """A repository. Each commit holds all files, not only those that it changed."""

    id: str
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # content of LFS files by sha256, committed or not yet

    def resolve(self, revision: str) -> str:
        """The id of the commit that a branch, a tag or a commit id means."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    def commit(self, branch: str, files: dict[str, bytes], title: str) -> str:
        """Make a commit of these files, and nothing else, the head of a branch; returns its id."""
        tree = [(path, git_hash(data)) for path, data in sorted(files.items())]
        oid = git_hash(repr((tree, self.branches.get(branch), title, len(self.commits))).encode(), "commit")
        self.commits[oid] = files
        self.objects |= {hashlib.sha256(data).hexdigest(): data for p, data in files.items() if is_lfs(p, len(data))}
        self.branches[branch] = oid  # last, for whoever reads at this moment
        return oid


class HubServer:
    """
    A Hub that runs while its `with` block does. `stop()` and `start()` take it down and back up, at the same address
    and with the same content.

    Args:
        token (`str`, *optional*):
            The token that writing, and reading of private repositories, asks for. Without, anybody may do anything. A
            wrong token is refused even where none is needed, as by the real Hub.
        user (`str`, defaults to `"user"`):
            The name of the user that the token belongs to.
        port (`int`, *optional*):
            Where the Hub listens. Default: a free port.

    Attributes:
        endpoint (`str`): The address for `HF_ENDPOINT`.
        requests (`list[tuple[str, str]]`):
            Method and path (as sent, without the query) of all requests to Hub and storage in order of arrival, but for
            `/api/agent-harnesses`, which the client asks once a day to learn who runs it.
    """

    def __init__(self, token: str | None = None, user: str = "user", port: int = 0):
        self.token, self.user = token, user
        self.requests: list[tuple[str, str]] = []
        self.repositories: dict[str, Repository] = {}
        self.lock, self.stopping = threading.RLock(), threading.Event()
        self._faults, self._servers, self._ports = [], [], [port, 0]
        self.endpoint = f"http://127.0.0.1:{port}"

    def start(self):
        """Serve. Returns when connections are accepted."""
        self.stopping.clear()
        self._servers = [_Server(port, self) for port in self._ports]
        self._ports = [server.server_port for server in self._servers]
        self.endpoint, self.storage = (f"http://127.0.0.1:{port}" for port in self._ports)
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self):
        """Close the port and all open connections. What is stored remains."""
        self.stopping.set()
        while self._servers:
            self._servers.pop().stop()

    __enter__ = start

    def __exit__(self, *exception):
        self.stop()

    def create(self, repo_id: str, private: bool = False) -> Repository:
        """Create a repository with the commit that the Hub makes in each."""
        repo = self.repositories[repo_id] = Repository(repo_id, private)
        repo.commit("main", {".gitattributes": GIT_ATTRIBUTES}, "initial commit")
        return repo

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """All files of a repository at a branch, a tag or a commit id."""
        repo = self.repositories[repo_id]
        return dict(repo.commits[repo.resolve(revision)])

    def commit(self, repo_id: str, files: dict[str, bytes | None], branch: str = "main") -> str:
        """Write these files (`None` deletes one) into a repository, which is made if need be; returns the commit id."""
        with self.lock:
            repo = self.repositories.get(repo_id) or self.create(repo_id)
            files = {**self.files(repo_id, branch), **files}
            return repo.commit(branch, {path: data for path, data in files.items() if data is not None}, "By a test")

    def fail_next(self, method, path, times=1, status=500, kind="status", skip=0, seconds=1.0) -> SimpleNamespace:
        """
        Let the next `times` requests fail that have this method and whose path matches the regular expression `path`
        somewhere, after `skip` of them passed. The `times` of what is returned counts down to zero. Kinds, where "the
        file" is the body of a request that has one, else the body of the answer:

        - `"status"`: the answer is `status`, and nothing is done;
        - `"reset"`: the connection is reset (TCP RST) after half the file, and nothing is done;
        - `"lost"`: the request is carried out, and the connection is reset instead of an answer;
        - `"truncate"`: half the file arrives. An answer announces its full length, and ends with the connection;
        - `"corrupt"`: the file arrives with all bits of its second half flipped;
        - `"delay"`: the request is carried out after `seconds`.
        """
        if kind not in FAULTS:
            raise ValueError(f"kind must be one of {FAULTS}, not {kind!r}")
        names = {"method": method, "path": path, "times": times, "status": status, "kind": kind}
        self._faults.append(SimpleNamespace(**names, skip=skip, seconds=seconds))
        return self._faults[-1]

    def take_fault(self, method: str, path: str) -> SimpleNamespace | None:
        """The fault that is due for this request."""
        with self.lock:
            for fault in self._faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.skip -= 1
                    if fault.skip < 0:
                        fault.times -= 1
                        return fault
        return None

    def sign(self, *parts: str) -> str:
        """What a URL of the storage carries instead of a token."""
        return hashlib.sha256(repr((id(self), *parts)).encode()).hexdigest()[:16]


class _Server(ThreadingHTTPServer):
    """One of the two ports, which knows its open connections so that it can close them."""

    daemon_threads = True

    def __init__(self, port: int, hub: HubServer):
        self.hub, self.connections = hub, set()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request, client_address):
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that went away, or was thrown out
            super().handle_error(request, client_address)

    def stop(self):
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed by now


ROUTES = []


def route(method: str, path: str, write: bool = False):
    """Let a method answer these requests. A group `repo` becomes a `Repository`; `write` asks for the token."""
    path = path.replace("<repo>", r"(?P<repo>[^/]+/[^/]+?)").replace("<revision>", r"(?P<revision>[^/]+)")

    def register(function):
        ROUTES.append((re.compile(f"({method}) {path}"), write, function))
        return function

    return register


class _Handler(BaseHTTPRequestHandler):
    """One connection: first the transport with its faults, then the protocol."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def handle_request(self):
        url, hub = urlsplit(self.path), self.server.hub
        self.hub, self.query = hub, {key: values[-1] for key, values in parse_qs(url.query).items()}
        if url.path != "/api/agent-harnesses":
            hub.requests.append((self.command, url.path))
        fault = hub.take_fault(self.command, url.path)
        self.fault = fault.kind if fault else None
        size = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(size // 2 if self.fault == "reset" else size)
        if size and self.fault == "reset":
            self.reset()
        if size and self.fault in ("truncate", "corrupt"):
            self.body, self.fault = damage(self.body, self.fault), None
        if self.fault == "delay":
            hub.stopping.wait(fault.seconds)
        try:
            if self.fault == "status":
                raise HubError(fault.status, "This failure was ordered by a test.")
            with hub.lock:
                status, headers, body = self.answer(f"{self.command} {url.path}")
        except HubError as error:
            status, headers, body = error.status, error.headers, error.body
        except (KeyError, TypeError, ValueError) as error:
            status, headers, body = 400, {}, {"error": f"Malformed request: {error!r}"}
        self.send(status, headers, body if isinstance(body, bytes) else json.dumps(body).encode())

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def send(self, status: int, headers: dict[str, str], body: bytes):
        """Send an answer, or what the fault makes of it."""
        if self.fault == "lost" or (self.fault == "reset" and self.command == "HEAD"):
            self.reset()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.fault in ("truncate", "corrupt", "reset"):
            body = damage(body, self.fault)
            self.close_connection = self.fault == "truncate"
        if self.command != "HEAD":
            self.wfile.write(body)
        if self.fault == "reset":
            self.reset()

    def reset(self):
        """Close the connection so that the client gets a TCP reset and not an end of the stream."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()  # the socket closes with the last object that holds it
        self.connection.close()
        raise ConnectionResetError("ordered by a test")

    def answer(self, request: str) -> tuple[int, dict, object]:
        """Status, headers and content of the answer to a request."""
        for pattern, write, function in ROUTES:
            if match := pattern.fullmatch(request):
                groups = {name: unquote(value or "") for name, value in match.groupdict().items()}
                if "/storage/" not in request:
                    self.authorize(write)
                if "repo" in groups:
                    groups["repo"] = self.repository(groups["repo"])
                return function(self, **groups)
        raise HubError(404, f"This test server does not know {request}")

    def authorize(self, write: bool):
        """Check the token, which may be missing where it is not needed, but never wrong."""
        given = self.headers.get("Authorization")
        if self.hub.token and given and given != f"Bearer {self.hub.token}":
            raise HubError(401, "Invalid credentials in Authorization header")
        self.anonymous = self.hub.token and not given
        if write and self.anonymous:
            # The client takes any 401 of a repository for a missing repository, but only by https. Hence the code.
            known = self.path in ("/api/repos/create", "/api/whoami-v2")
            raise HubError(401, "Invalid username or password.", None if known else "RepoNotFound")

    def repository(self, repo_id: str) -> Repository:
        """A repository, as far as this client may know about it."""
        repo = self.hub.repositories.get(repo_id)
        signed = "/storage/" in self.path  # its addresses are signed and need no token
        if repo is None or (repo.private and not signed and self.anonymous):
            refusal = (404, "Repository not found")
            if not signed and self.anonymous:
                refusal = (401, "Invalid username or password.")
            raise HubError(*refusal, "RepoNotFound")
        return repo

    @route("GET", "/api/agent-harnesses")
    def agent_harnesses(self):
        return 200, {}, {"standardEnvVars": [], "harnesses": {}}

    @route("GET", "/api/whoami-v2", write=True)
    def whoami(self):
        access = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        return 200, {}, {"type": "user", "name": self.hub.user, "fullname": self.hub.user, "orgs": [], "auth": access}

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self):
        empty = [{"message": "empty or missing yaml metadata in repo card"}]
        has_yaml = json.loads(self.body)["content"].startswith("---\n")
        return 200, {}, {"errors": [], "warnings": [] if has_yaml else empty}

    @route("POST", "/api/repos/create", write=True)
    def create_repo(self):
        request = json.loads(self.body)
        if request.get("type") not in (None, "model"):
            raise HubError(400, "This test server has only models")
        repo_id = f"{request['organization'] or self.hub.user}/{request['name']}"
        url = f"{self.hub.endpoint}/{repo_id}"
        if repo_id in self.hub.repositories:
            raise HubError(409, f"You already created this model repo: {repo_id}", url=url)
        self.hub.create(repo_id, request.get("visibility") == "private" or bool(request.get("private")))
        return 200, {}, {"url": url, "name": repo_id}

    @route("GET", "/api/models/<repo>/auth-check/write", write=True)
    def auth_check(self, repo: Repository):
        return 200, {}, {}

    @route("GET", "/api/models/<repo>(/revision/<revision>)?")
    def info(self, repo: Repository, revision: str):
        oid, siblings = repo.resolve(revision or "main"), []
        for path, data in sorted(repo.commits[oid].items()):
            info = file_info(path, data) if "blobs" in self.query else {}
            siblings.append({"rfilename": path, "blobId": info.pop("oid", None), **info})
        info = {"id": repo.id, "author": repo.id.split("/")[0], "sha": oid, "private": repo.private, "tags": []}
        info |= {"gated": False, "disabled": False, "downloads": 0, "likes": 0}
        info |= {"createdAt": DATE, "lastModified": DATE, "siblings": siblings}
        return 200, {}, info

    def entries(self, repo: Repository, revision: str) -> dict[str, dict]:
        """All files and folders by path."""
        oid, entries = repo.resolve(revision), {}
        for path, data in sorted(repo.commits[oid].items()):
            for folder in (str(folder) for folder in reversed(PurePosixPath(path).parents[:-1])):
                tree_id = git_hash(f"{oid} {folder}".encode(), "tree")
                entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": tree_id}
            entries[path] = file_info(path, data)
        return entries

    @route("GET", "/api/models/<repo>/tree/<revision>(/(?P<path>.+))?")
    def tree(self, repo: Repository, revision: str, path: str):
        entries, path = self.entries(repo, revision), path.strip("/")
        if path and path not in entries:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        inside = [name for name in entries if not path or name.startswith(f"{path}/")]
        if self.query.get("recursive", "").lower() not in ("true", "1"):
            inside = [name for name in inside if "/" not in name.removeprefix(f"{path}/")]
        return 200, {}, [entries[name] for name in inside]

    @route("POST", "/api/models/<repo>/paths-info/<revision>")
    def paths_info(self, repo: Repository, revision: str):
        entries = self.entries(repo, revision)
        paths = [path.strip("/") for path in parse_qs(self.body.decode()).get("paths", [])]
        return 200, {}, [entries[path] for path in paths if path in entries]

    @route("GET", "/api/models/<repo>/refs")
    def refs(self, repo: Repository):
        answer = {"converts": [], "pullRequests": []}
        for key, folder, names in (("branches", "heads", repo.branches), ("tags", "tags", repo.tags)):
            answer[key] = [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": oid} for n, oid in names.items()]
        return 200, {}, answer

    @route("POST", "/api/models/<repo>/tag/<revision>", write=True)
    def add_tag(self, repo: Repository, revision: str):
        return self.add_ref(repo.tags, json.loads(self.body)["tag"], repo.resolve(revision))

    @route("POST", "/api/models/<repo>/branch/(?P<name>[^/]+)", write=True)
    def add_branch(self, repo: Repository, name: str):
        return self.add_ref(repo.branches, name, repo.resolve(json.loads(self.body).get("startingPoint", "main")))

    def add_ref(self, refs: dict[str, str], name: str, oid: str):
        if name in refs:
            raise HubError(409, f"Reference already exists: {name}")
        refs[name] = oid
        return 200, {}, {}

    @route("GET|HEAD", "/<repo>/resolve/<revision>/(?P<path>.+)")
    def resolve(self, repo: Repository, revision: str, path: str):
        oid = repo.resolve(revision)
        headers = {"X-Repo-Commit": oid}
        if path not in repo.commits[oid]:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        data = repo.commits[oid][path]
        info = file_info(path, data)
        headers["ETag"] = f'"{info["oid"]}"'
        if "lfs" not in info:
            return self.content(headers, data)
        sha256 = info["lfs"]["sha256"]
        signature = self.hub.sign("GET", repo.id, sha256)
        headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": len(data)}
        headers["Location"] = f"{self.hub.storage}/storage/{repo.id}/{sha256}/{quote(path)}?signature={signature}"
        return 302, headers, {}

    def content(self, headers: dict, data: bytes):
        """A file, or the range of it that the client asks for."""
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
            if start > end:
                raise HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{len(data)}"})
            return 206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"}, data[start : end + 1]
        return 200, headers, data

    @route("GET|HEAD", "/storage/<repo>/(?P<oid>[0-9a-f]{64})/.+")
    def download(self, repo: Repository, oid: str):
        if self.query.get("signature") != self.hub.sign("GET", repo.id, oid):
            raise HubError(403, "SignatureDoesNotMatch")
        return self.content({"ETag": f'"{oid}"'}, repo.objects[oid])

    @route("PUT", "/storage/<repo>/(?P<oid>[0-9a-f]{64})")
    def upload(self, repo: Repository, oid: str):
        if self.query.get("signature") != self.hub.sign("PUT", repo.id, oid, self.query["size"]):
            raise HubError(403, "SignatureDoesNotMatch")
        if len(self.body) != int(self.query["size"]) or hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "BadDigest: the content that arrived is not the one that was announced")
        repo.objects[oid] = self.body
        return 200, {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'}, b""

    @route("POST", r"/<repo>\.git/info/lfs/objects/batch", write=True)
    def lfs_batch(self, repo: Repository):
        request, objects = json.loads(self.body), []
        if request["operation"] != "upload" or "basic" not in request["transfers"]:
            raise HubError(400, "This test server knows only uploads by basic transfer")
        for oid, size in ((item["oid"], item["size"]) for item in request["objects"]):
            objects.append({"oid": oid, "size": size})
            if oid not in repo.objects:
                signature = self.hub.sign("PUT", repo.id, oid, str(size))
                upload = f"{self.hub.storage}/storage/{repo.id}/{oid}?size={size}&signature={signature}"
                verify = f"{self.hub.endpoint}/{repo.id}.git/info/lfs/objects/verify"
                objects[-1]["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        return 200, {}, {"transfer": "basic", "objects": objects}

    @route("POST", r"/<repo>\.git/info/lfs/objects/verify", write=True)
    def lfs_verify(self, repo: Repository):
        request = json.loads(self.body)
        if len(repo.objects.get(request["oid"], b"")) != request["size"]:
            raise HubError(404, "The object was not uploaded")
        return 200, {}, {}

    @route("POST", "/api/models/<repo>/preupload/<revision>", write=True)
    def preupload(self, repo: Repository, revision: str):
        """Which files go to LFS, and which contents are there already."""
        files, answers = repo.commits[repo.resolve(revision)], []
        for path, size in ((item["path"], item["size"]) for item in json.loads(self.body)["files"]):
            mode = "lfs" if is_lfs(path, size) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
            if path in files:
                info = file_info(path, files[path])
                answers[-1]["oid"] = info.get("lfs", info)["oid"]
        return 200, {}, {"files": answers}

    @route("POST", "/api/models/<repo>/commit/<revision>", write=True)
    def commit(self, repo: Repository, revision: str):
        """A commit, all of it or nothing."""
        parent = repo.resolve(revision)
        if revision not in repo.branches or "create_pr" in self.query:
            raise HubError(400, "This test server commits only to branches")
        files, operations = dict(repo.commits[parent]), [json.loads(line) for line in self.body.splitlines()]
        header = operations.pop(0)["value"]
        if not parent.startswith(header.get("parentCommit", "")):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        for key, value in ((operation["key"], operation["value"]) for operation in operations):
            path = value["path"].rstrip("/")
            if any(part in ("", ".", "..", ".git") for part in path.split("/")):
                raise HubError(400, f"Invalid path: {path!r}")
            if key == "file":
                files[path] = base64.b64decode(value["content"], validate=True)
            elif key == "lfsFile":
                files[path] = repo.objects[value["oid"]]
            elif key in ("deletedFile", "deletedFolder"):
                gone = [p for p in files if (p == path if key == "deletedFile" else p.startswith(f"{path}/"))]
                if not gone:
                    raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                files = {p: data for p, data in files.items() if p not in gone}
            else:
                raise HubError(400, f"Unknown operation: {key}")
        oid = repo.commit(revision, files, header["summary"])
        url = f"{self.hub.endpoint}/{repo.id}/commit/{oid}"
        return 200, {}, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""}


def client_environment(server: HubServer, cache_dir: str | Path, token: str | None = None, **extra) -> dict[str, str]:
    """
    The environment of a client process: this one's, without proxies and settings of Hugging Face libraries, with this
    server as the Hub. `cache_dir` takes all that the client keeps, in `cache_dir/hub` the files that it downloads.
    `extra` sets further variables (`HF_HUB_OFFLINE="1"`).
    """
    foreign = re.compile(r"(HF|HUGGING_?FACE(_HUB)?|TRANSFORMERS|DIFFUSERS)_.*|XDG_CACHE_HOME|.*_PROXY", re.IGNORECASE)
    environment = {name: value for name, value in os.environ.items() if not foreign.fullmatch(name)}
    environment |= {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(cache_dir), "HF_HUB_CACHE": f"{cache_dir}/hub"}
    for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        environment[name] = "1"
    environment |= {"NO_PROXY": "*", **({"HF_TOKEN": token} if token else {})}
    return environment | {name: str(value) for name, value in extra.items()}
