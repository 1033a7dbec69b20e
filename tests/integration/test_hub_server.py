# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
The Hub of the tests, against the real client: what is pushed is what is loaded, and each fault does what it says. What
the client makes of a fault is asserted too, since what this package does about failures of the Hub rests on it.
"""

import http.client
import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hub_server import HubServer, client_environment
from processes import hub, start_code, start_command


# Runs before each client script. No retry waits: `waits` gets the seconds that the client wanted to.
PRELUDE = """
import json, os, sys, time
sys.stdout = open("stdout.json", "w")
from pathlib import Path
folder, waits = os.environ.get("FOLDER"), []
time.sleep = waits.append
from huggingface_hub import *

def outcome(call, *args, **kwargs):
    '''Names of the exception and its causes, or "ok"; and how long the client waited in between.'''
    waits.clear()
    try:
        call(*args, **kwargs)
        names = ["ok"]
    except Exception as error:
        names = []
        while error is not None:
            names.append(type(error).__name__)
            error = error.__cause__
    return [names, list(waits)]

def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes().hex() for path in Path(folder).rglob("*") if path.is_file()}
"""

WEIGHTS = bytes(range(250)) * 800
BACKOFF = [1, 2, 4, 8, 8]


def client(server, folder, script, token=None, **environment):
    """Run a script on a machine, which is a folder; returns what it passes to `json.dump(..., sys.stdout)`."""
    folder.mkdir(exist_ok=True)
    script = PRELUDE + script
    environment = {name: str(value) for name, value in environment.items()}
    if "HF_HUB_DOWNLOAD_TIMEOUT" in environment:  # which the client reads when it is imported
        environment = client_environment(server, folder / "cache", token, **environment)
        run = start_command("-c", script, cwd=folder, environment=environment)
    else:
        run = start_code(script, cwd=folder, **environment, **({} if token is None else {"HF_TOKEN": token}))
    assert run.wait() == 0, run.output
    return json.loads((folder / "stdout.json").read_text())


def text(files):
    return {path: data.hex() for path, data in files.items()}


def blobs(cache_dir):
    """All files that the client holds for good, and those that it did not finish."""
    return [path for path in Path(cache_dir).rglob("blobs/*") if path.is_file()]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "unet").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    (folder / "unet" / "config.json").write_text('{"a": 1}')
    (folder / "unet" / "model.safetensors").write_bytes(WEIGHTS)
    return folder


def test_what_is_pushed_is_what_is_loaded(tmp_path, folder):
    with hub() as server:
        result = client(
            server,
            tmp_path / "push",
            """
api = HfApi()
urls = [create_repo("user/tiny"), create_repo("tiny", exist_ok=True)]
again = outcome(create_repo, "user/tiny")
first = upload_folder(repo_id="user/tiny", folder_path=folder)
create_tag("user/tiny", tag="v1")
create_branch("user/tiny", branch="try/it", revision=first.oid)
nothing = upload_folder(repo_id="user/tiny", folder_path=folder)
operations = [CommitOperationDelete("README.md"), CommitOperationAdd("new.json", b"[]")]
second = create_commit("user/tiny", operations, commit_message="second", parent_commit=first.oid)
late = [CommitOperationAdd("late.json", b"")]
late = outcome(create_commit, "user/tiny", late, commit_message="late", parent_commit=first.oid)
api.upload_file(repo_id="user/tiny", path_in_repo="b.json", path_or_fileobj=b"1", revision="try/it")
info = model_info("user/tiny", files_metadata=True)
refs = list_repo_refs("user/tiny")
json.dump({
    "urls": urls, "again": again, "late": late, "first": first.oid, "nothing": nothing.oid, "second": second.oid,
    "name": whoami()["name"], "sha": info.sha,
    "siblings": [[s.rfilename, s.size, s.lfs and s.lfs.sha256] for s in info.siblings],
    "tree": [[type(f).__name__, f.path] for f in api.list_repo_tree("user/tiny", "unet", revision="v1")],
    "top": [f.path for f in api.list_repo_tree("user/tiny")],
    "paths": [[f.path, f.lfs.size] for f in api.get_paths_info("user/tiny", ["unet/model.safetensors", "no"])],
    "refs": [[r.name, r.target_commit] for r in refs.branches + refs.tags],
    "exists": [api.file_exists("user/tiny", "b.json"), api.file_exists("user/tiny", "b.json", revision="try/it"),
               api.repo_exists("user/no"), api.revision_exists("user/tiny", "no")],
}, sys.stdout)
""",
            token="hf_test",
            FOLDER=folder,
        )
        assert result["urls"] == [f"{server.endpoint}/user/tiny"] * 2
        assert result["again"] == [["HfHubHTTPError", "HTTPStatusError"], []]
        assert result["late"] == [["HfHubHTTPError", "HTTPStatusError"], []]
        assert result["nothing"] == result["first"] != result["second"] == result["sha"]
        assert result["name"] == "user"
        assert [path for path, *_ in result["siblings"]] == sorted(server.files("user/tiny"))
        assert all(len(server.files("user/tiny")[path]) == size for path, size, _ in result["siblings"])
        assert [path for path, _, sha256 in result["siblings"] if sha256] == ["unet/model.safetensors"]
        assert result["tree"] == [["RepoFile", "unet/config.json"], ["RepoFile", "unet/model.safetensors"]]
        assert result["top"] == [".gitattributes", "new.json", "unet"]
        assert result["paths"] == [["unet/model.safetensors", len(WEIGHTS)]]
        assert [name for name, _ in result["refs"]] == ["main", "try/it", "v1"]
        assert result["refs"][0][1] == result["second"] and result["refs"][2][1] == result["first"]
        assert result["exists"] == [False, True, False, False]
        pushed = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}
        assert {**pushed, ".gitattributes": b""} == {**server.files("user/tiny", "v1"), ".gitattributes": b""}

        # By branch, tag and commit id, into an empty cache, by somebody without a token. Nothing is fetched twice.
        script = f"""
revisions = [None, "v1", {result["first"]!r}, "try/it"]
json.dump([content(snapshot_download("user/tiny", revision=r, local_files_only=LOCAL)) for r in revisions], sys.stdout)
"""
        revisions = ["main", "v1", result["first"], "try/it"]
        expected = [text(server.files("user/tiny", revision)) for revision in revisions]
        server.requests.clear()
        assert client(server, tmp_path / "pull", script.replace("LOCAL", "False")) == expected
        data = [path for method, path in server.requests if method == "GET" and "/api/" not in path]
        assert len(data) == len(set(data)) and len([path for path in data if "/storage/" in path]) == 1
        server.requests.clear()
        assert client(server, tmp_path / "pull", script.replace("LOCAL", "False")) == expected
        names = ["main", "v1", "try%2Fit"]  # a commit id is not even asked for
        assert server.requests == [("GET", f"/api/models/user/tiny/revision/{name}") for name in names]
        server.requests.clear()
    assert client(server, tmp_path / "pull", script.replace("LOCAL", "True")) == expected
    assert client(server, tmp_path / "pull", script.replace("LOCAL", "False")) == expected  # the client sees to that
    assert server.requests == []
    with server:  # the same Hub, back
        assert client(server, tmp_path / "pull", script.replace("LOCAL", "False")) == expected


def test_token(tmp_path, folder):
    script = """
json.dump([
    outcome(create_repo, "user/new"),
    outcome(create_repo, "user/public", exist_ok=True),
    outcome(upload_folder, repo_id="user/public", folder_path=folder),
    outcome(create_tag, "user/public", tag="v1"),
    outcome(model_info, "user/public"),
    outcome(hf_hub_download, "user/public", "a.json"),
    outcome(model_info, "user/private"),
    outcome(hf_hub_download, "user/private", "a.json"),
    outcome(whoami),
], sys.stdout)
"""
    with hub("hf_right") as server:
        server.create("user/private", private=True)
        commits = [server.commit(f"user/{name}", {"a.json": b"{}"}) for name in ("public", "private")]
        wrong = client(server, tmp_path / "wrong", script, token="hf_wrong", FOLDER=folder)
        none = client(server, tmp_path / "none", script, FOLDER=folder)
        assert list(server.repositories) == ["user/private", "user/public"]
        assert [server.repositories[f"user/{n}"].branches["main"] for n in ("public", "private")] == commits
        assert not any(repo.objects or repo.tags for repo in server.repositories.values())
        right = client(server, tmp_path / "right", script, token="hf_right", FOLDER=folder)
    ok, refused = [["ok"], []], [["HfHubHTTPError", "HTTPStatusError"], []]
    missing = [["RepositoryNotFoundError", "HTTPStatusError"], []]
    assert wrong[:8] == [refused] * 8 and wrong[8][0][0] == "HfHubHTTPError"
    # With exist_ok the client takes a refused creation for a success if it can read the repository.
    assert none[:8] == [refused, ok, missing, missing, ok, ok, missing, missing]
    assert none[8][0] == ["LocalTokenNotFoundError"]
    assert right == [ok] * 9


def test_failed_push(tmp_path, folder):
    names = ["reset", "down", "corrupt", "truncate", "gone", "busy", "cut", "lost", "preupload", "create"]
    with hub(None) as server:
        before = {name: server.commit(f"user/{name}", {"old.json": b"{}"}) for name in names[:-1]}
        faults = [
            server.fail_next("PUT", "/user/reset/", kind="reset", times=2),
            server.fail_next("PUT", "/user/down/", times=6),
            server.fail_next("PUT", "/user/corrupt/", kind="corrupt"),
            server.fail_next("PUT", "/user/truncate/", kind="truncate"),
            server.fail_next("PUT", "/user/gone/", kind="reset", times=6),
            server.fail_next("POST", "/user/busy/commit/", status=503),
            server.fail_next("POST", "/user/cut/commit/", kind="reset"),
            server.fail_next("POST", "/user/lost/commit/", kind="lost"),
            server.fail_next("POST", "/user/preupload/preupload/", times=1),
            server.fail_next("POST", "/api/repos/create", times=1),
        ]
        script = """
def push(name):
    create_repo(f"user/{name}", exist_ok=name != "create")
    upload_folder(repo_id=f"user/{name}", folder_path=folder)
names = NAMES
json.dump({name: outcome(push, name) for name in names}, sys.stdout)
"""
        # The existence check of the other repositories is not what `create` is about: its fault comes last.
        faults[-1].skip = len(names) - 1
        result = client(server, tmp_path / "cache", script.replace("NAMES", repr(names)), FOLDER=folder)
        assert [fault.times for fault in faults] == [0] * len(faults)

        # Uploads to LFS and the calls before are tried six times, in 23 seconds; what the server refuses, once.
        failed = ["RuntimeError", "HfHubHTTPError", "HTTPStatusError"]
        # If the reset meets the client while it sends, it goes on to read, and finds the end of the connection.
        pipe = ("ReadError", "WriteError", "RemoteProtocolError")
        assert result["reset"] == [["ok"], [1, 2]]
        assert result["preupload"] == [["ok"], [1]]
        assert result["down"] == [failed, BACKOFF]
        assert result["corrupt"] == result["truncate"] == [["RuntimeError", "BadRequestError", "HTTPStatusError"], []]
        assert result["gone"][0][0] == "RuntimeError" and result["gone"][0][1] in pipe
        assert result["gone"][1] == BACKOFF
        # The commit itself and the creation of the repository: once. A reset comes out as an error of httpx2.
        assert result["busy"] == result["create"] == [failed[1:], []]
        assert result["cut"][0][0] in pipe and result["lost"][0][0] in pipe
        assert result["cut"][1] == result["lost"][1] == []

        for name in ("down", "corrupt", "truncate", "gone", "busy", "cut"):
            assert server.repositories[f"user/{name}"].branches == {"main": before[name]}, name
            assert set(server.files(f"user/{name}")) == {".gitattributes", "old.json"}
            assert bool(server.repositories[f"user/{name}"].objects) == (name in ("busy", "cut")), name
        assert "user/create" not in server.repositories
        for name in ("reset", "lost", "preupload"):
            assert server.files(f"user/{name}")["unet/model.safetensors"] == WEIGHTS

        # The second attempt succeeds, and does not send again what had arrived.
        server.requests.clear()
        result = client(server, tmp_path / "cache", script.replace("NAMES", repr(names)), FOLDER=folder)
        assert result == {name: [["ok"], []] for name in names}
        assert all(server.files(f"user/{name}")["unet/model.safetensors"] == WEIGHTS for name in names)
        sent = [path.split("/")[3] for method, path in server.requests if method == "PUT"]
        assert sent == ["down", "corrupt", "truncate", "gone", "create"]
        assert ("POST", "/api/models/user/lost/commit/main") not in server.requests


def test_failed_download(tmp_path):
    with hub(None) as server:
        names = ["once", "truncate", "reset", "down", "head", "resethead", "slow", "corrupt", "info"]
        for name in names:
            server.commit(f"user/{name}", {"a.safetensors": WEIGHTS, "b.json": b"{}"})
        file = "/a.safetensors$"
        faults = [
            server.fail_next("GET", f"/user/once/.*{file}", kind="truncate", times=2),
            server.fail_next("GET", f"/user/truncate/.*{file}", kind="truncate", times=6),
            server.fail_next("GET", f"/user/reset/.*{file}", kind="reset"),
            server.fail_next("GET", f"/user/down/.*{file}", status=503),
            server.fail_next("HEAD", f"/user/head/.*{file}", times=7),
            server.fail_next("HEAD", f"/user/resethead/.*{file}", kind="reset"),
            server.fail_next("GET", f"/user/slow/.*{file}", kind="delay", seconds=3),
            server.fail_next("GET", f"/user/corrupt/.*{file}", kind="corrupt"),
            server.fail_next("GET", "/api/models/user/info/revision/", times=2),
        ]
        script = f"""
names = {names[:-1]!r}
result = {{name: outcome(hf_hub_download, f"user/{{name}}", "a.safetensors") for name in names}}
result["info"] = [outcome(model_info, "user/info", revision="main"), outcome(snapshot_download, "user/info")]
json.dump(result, sys.stdout)
"""
        cache = tmp_path / "cache"
        result = client(server, cache, script, HF_HUB_DOWNLOAD_TIMEOUT=1)
        assert [fault.times for fault in faults] == [0] * len(faults)
        # What ends early, or is late, is asked for again, six times in five seconds. A reset and a status are not.
        assert result["once"] == [["ok"], [1, 1]]
        assert result["truncate"][0][0] == "RemoteProtocolError" and result["truncate"][1] == [1] * 5
        assert result["reset"][0][0] == "ReadError" and result["reset"][1] == []
        assert result["down"] == [["HfHubHTTPError", "HTTPStatusError"], []]
        assert result["slow"] == [["ok"], [1]]
        # A failing HEAD: at once a look into the cache, then the six attempts.
        assert result["head"] == [["LocalEntryNotFoundError", "HfHubHTTPError", "HTTPStatusError"], BACKOFF]
        assert result["resethead"][0][0] == "ReadError" and result["resethead"][1] == []
        refused = ["HfHubHTTPError", "HTTPStatusError"]
        assert result["info"] == [[refused, []], [["LocalEntryNotFoundError", *refused], []]]
        # The client compares sizes, not checksums: only what has the right length comes into the cache, but that does.
        assert result["corrupt"] == [["ok"], []]
        for name in names:
            found = blobs(cache / "cache" / "hub" / f"models--user--{name}")
            assert [path.stat().st_size for path in found] == [len(WEIGHTS)] * (name in ("once", "slow", "corrupt"))
            assert [path.read_bytes() == WEIGHTS for path in found] == [name != "corrupt"] * len(found)

        again = [name for name in names if name not in ("once", "slow", "corrupt", "info")]
        server.requests.clear()
        script = f'json.dump([outcome(snapshot_download, f"user/{{n}}") for n in {names!r}], sys.stdout)'
        assert client(server, cache, script) == [[["ok"], []]] * len(names)
        for name in again:
            assert WEIGHTS in [path.read_bytes() for path in blobs(cache / "cache" / "hub" / f"models--user--{name}")]
        fetched = [
            path.split("/")[3] for method, path in server.requests if method == "GET" and path.endswith(".safetensors")
        ]
        assert sorted(fetched) == sorted([*again, "info"])


def test_transport():
    """Ranges, keep-alive, and each fault as any client sees it."""
    server = HubServer()
    with server:
        first = server.commit("user/tiny", {"a.json": b"0123456789"})
        assert server.commit("user/tiny", {"a.json": None}) != first
        assert set(server.files("user/tiny")) == {".gitattributes"}
        assert server.files("user/tiny", first)["a.json"] == b"0123456789"
        connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc, timeout=10)
        path = f"/user/tiny/resolve/{first}/a.json"

        def get(method="GET", path=path, **headers):
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read(), response.headers

        assert get()[:2] == (200, b"0123456789")
        socket = connection.sock
        assert get(Range="bytes=4-")[:2] == (206, b"456789")
        assert get(Range="bytes=4-6")[:2] == (206, b"456")
        assert get(Range="bytes=4-6")[2]["Content-Range"] == "bytes 4-6/10"
        assert get(Range="bytes=10-")[0] == 416
        assert get("HEAD")[:2] == (200, b"") and get("HEAD")[2]["Content-Length"] == "10"
        assert get(path="/user/tiny/resolve/main/a.json")[2]["X-Error-Code"] == "EntryNotFound"
        assert get(path="/user/tiny/resolve/no/a.json")[2]["X-Error-Code"] == "RevisionNotFound"
        assert get(path="/user/no/resolve/main/a.json")[2]["X-Error-Code"] == "RepoNotFound"
        assert get(path="/nothing")[0] == 404
        server.fail_next("GET", "a.json", status=418)
        assert get()[0] == 418
        server.fail_next("GET", "a.json", kind="corrupt", skip=1)
        assert [get()[1], get()[1], get()[1]] == [b"0123456789", b"01234\xca\xc9\xc8\xc7\xc6", b"0123456789"]
        assert connection.sock is socket  # one connection so far
        server.fail_next("GET", "a.json", kind="truncate")
        with pytest.raises(http.client.IncompleteRead, match="5 bytes read, 5 more expected"):
            get()
        connection.close()
        for kind in ("reset", "lost"):
            server.fail_next("GET", "a.json", kind=kind)
            with pytest.raises(ConnectionResetError):
                get()
            connection.close()
        with pytest.raises(ValueError, match="kind must be one of"):
            server.fail_next("GET", "a.json", kind="fire")
        assert get()[0] == 200
    with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
        get()  # the open connection is closed, too
    with pytest.raises(ConnectionRefusedError):
        get()


def test_diffusers(tmp_path):
    script = """
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
torch.set_num_threads(1)
if PUSH:
    unet = UNet2DModel(sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
                       down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"))
    pipe = DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=10))
    pipe.push_to_hub("user/tiny")
else:
    pipe = DDPMPipeline.from_pretrained("user/tiny")
# Weights that were read from a file lie at other addresses in memory, on which the last bit of a sum depends.
pipe.unet.load_state_dict({name: weight.clone() for name, weight in pipe.unet.state_dict().items()}, assign=True)
pipe.set_progress_bar_config(disable=True)
image = pipe(num_inference_steps=2, generator=torch.manual_seed(0), output_type="np").images
json.dump(image.tobytes().hex(), sys.stdout)
"""
    with hub() as server:
        pushed = client(server, tmp_path / "push", script.replace("PUSH", "True"), token="hf_test")
        files = {"README.md", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json"}
        files |= {".gitattributes", "unet/diffusion_pytorch_model.safetensors"}
        assert set(server.files("user/tiny")) == files
        assert client(server, tmp_path / "load", script.replace("PUSH", "False")) == pushed
