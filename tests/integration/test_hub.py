# Copyright 2026 The ddm-diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Sharing works over HTTP, with the real huggingface_hub client in processes with empty caches that have not imported the
package, against a Hub on loopback that speaks the real protocol: a pipeline that was pushed loads in each of the documented ways with the same
output; pushes and downloads that fail lose nothing; what a hostile repository names is never run.
"""

import json
import shutil
import textwrap

import diffusers
import numpy as np
import pytest
import torch
from hub_server import client_environment
from huggingface_hub import ModelCard
from PIL import Image
from processes import hub, start_code, start_command
from safetensors.torch import load_file
from stock_parts import TINY_UNET, perturb, seeded, tiny_conditional_unet, tiny_text_parts, tiny_vae

from ddm_diffusers import DDMPipeline, DDMScheduler, DDMUNet2DConditionModel
from ddm_diffusers.model_card import is_generated_card, write_model_card


TOKEN = "hf_test"
REPO = "user/tiny"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"

PRELUDE = """
import json, logging, sys
import numpy as np, torch
torch.set_num_threads(1)
repo, output = sys.argv[1:]

def draw(pipe):
    # weights of their own memory: mapped from a file they are aligned differently, which changes torch's last bit
    for weight in pipe.unet.parameters():
        weight.data = weight.data.clone()
    pipe.set_progress_bar_config(disable=True)
    arguments = {"class_labels": [0, 2], "guidance_scale": 2.0} if type(pipe).__name__ == "DDMPipeline" else {}
    generator = torch.Generator().manual_seed(0)
    np.save(output, pipe(batch_size=2, num_inference_steps=3, generator=generator, output_type="np", **arguments).images)
"""


class Client:
    """A user's machine: a folder with a cache that outlives the processes that run on it."""

    def __init__(self, server, folder, token=None):
        self.server, self.folder, self.token = server, folder, token
        self.output = folder / "output.npy"

    def run(self, code, repo=REPO, fresh=False, **environment):
        """Run code in a process; fresh is one that has imported nothing, and that reads its environment anew."""
        code = PRELUDE + textwrap.dedent(code)
        if fresh:
            environment = client_environment(self.server, self.folder / "cache", token=self.token, **environment)
            run = start_command("-c", code, repo, self.output, cwd=self.folder, environment=environment)
        else:
            token = {} if self.token is None else {"HF_TOKEN": self.token}
            run = start_code(code, repo, self.output, cwd=self.folder, **token)
        run.wait()
        return run

    def images(self, code, repo=REPO, **options):
        """Run code that ends in `draw(pipe)`; what it drew."""
        run = self.run(code, repo, **options)
        assert run.exit_code() == 0, run.output[-3000:]
        return np.load(self.output)

    def error(self, code, repo=REPO, **options):
        """Run code that fails; the last lines of its traceback."""
        run = self.run(code, repo, **options)
        assert run.exit_code() != 0, "the code did not fail"
        return run.output[run.output.rindex("Traceback") :]


@pytest.fixture(scope="module")
def server():
    with hub(TOKEN) as server:
        yield server


@pytest.fixture
def client(server, tmp_path):
    folder = tmp_path / "machine"
    folder.mkdir()
    return Client(server, folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A class-conditional pipeline in a folder."""
    from ddm_diffusers import DDMUNet2DModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved")
    DDMPipeline(DDMUNet2DModel(**TINY_UNET, num_class_embeds=3), DDMScheduler(eta=0.5)).save_pretrained(folder)
    return folder


LOAD = "from ddm_diffusers import DDMPipeline; draw(DDMPipeline.from_pretrained(repo))"


@pytest.fixture(scope="module")
def pushed(server, saved, tmp_path_factory):
    """What a user sees who pushes that pipeline, with an fp16 variant and a tag for what came before it."""
    client = Client(server, tmp_path_factory.mktemp("author"), token=TOKEN)
    return client.images(
        f"""
        from ddm_diffusers import DDMPipeline
        from huggingface_hub import HfApi
        pipe = DDMPipeline.from_pretrained({str(saved)!r})
        draw(pipe)
        pipe.push_to_hub(repo)
        HfApi().create_tag(repo, tag="v1")
        pipe.to(torch.float16).push_to_hub(repo, variant="fp16")
        """
    )


WAYS = {
    "its own class": LOAD,
    "DiffusionPipeline": """
        from diffusers import DiffusionPipeline
        assert "ddm_diffusers" not in sys.modules
        pipe = DiffusionPipeline.from_pretrained(repo, trust_remote_code=True)
        assert type(pipe).__module__ == "ddm_diffusers.pipelines.pipeline_ddm"
        draw(pipe)
        """,
    "components": """
        from ddm_diffusers import DDMPipeline, DDMScheduler, DDMUNet2DModel
        unet = DDMUNet2DModel.from_pretrained(repo, subfolder="unet")
        draw(DDMPipeline(unet, DDMScheduler.from_pretrained(repo, subfolder="scheduler")))
        """,
    "a component passed": """
        from ddm_diffusers import DDMPipeline, DDMScheduler
        draw(DDMPipeline.from_pretrained(repo, scheduler=DDMScheduler(eta=0.5)))
        """,
    "a revision": LOAD.replace("(repo)", "(repo, revision='v1')"),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_load(way, client, pushed):
    assert np.array_equal(client.images(WAYS[way]), pushed)


@pytest.mark.slow
def test_a_fresh_interpreter(client, pushed):
    """As diffusers knows what was imported before."""
    assert np.array_equal(client.images(WAYS["DiffusionPipeline"], fresh=True), pushed)


def test_variants_and_dtypes(client, pushed):
    images = client.images(
        """
        from ddm_diffusers import DDMPipeline
        pipe = DDMPipeline.from_pretrained(repo, variant="fp16", torch_dtype=torch.float16)
        assert pipe.unet.dtype == torch.float16
        draw(pipe.to(torch.float32))
        """
    )
    # float16 rounds weights of order 0.1 by up to 2^-14
    assert not np.array_equal(images, pushed)
    assert np.abs(images - pushed).max() < 0.02
    names = [path.name for path in (client.folder / "cache").rglob("*.safetensors")]
    assert names == ["diffusion_pytorch_model.fp16.safetensors"]
    assert "variant=missing" in client.error(LOAD.replace("(repo)", "(repo, variant='missing')"))


@pytest.mark.slow
def test_a_second_load_comes_from_the_cache(client, pushed, server):
    client.images(LOAD)
    before = len(server.requests)
    assert np.array_equal(client.images(LOAD), pushed)
    assert not [path for method, path in server.requests[before:] if method == "GET" and "/api/" not in path]
    server.stop()
    try:
        assert np.array_equal(client.images(LOAD, fresh=True, HF_HUB_OFFLINE="1"), pushed)
        assert np.array_equal(client.images(LOAD.replace("(repo)", "(repo, local_files_only=True)")), pushed)
    finally:
        server.start()


def test_a_stock_pipeline_with_our_parts(server, tmp_path, client):
    author = Client(server, tmp_path, token=TOKEN)
    expected = author.images(
        """
        from diffusers import DDPMPipeline
        from ddm_diffusers import DDMScheduler, DDMUNet2DModel
        torch.manual_seed(0)
        unet = DDMUNet2DModel(
            sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, attention_head_dim=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
        pipe = DDPMPipeline(unet, DDMScheduler())
        draw(pipe)
        pipe.push_to_hub(repo)
        """,
        repo="user/stock",
    )
    load = "from diffusers import DDPMPipeline; draw(DDPMPipeline.from_pretrained(repo{}))"
    assert np.array_equal(client.images("import ddm_diffusers; " + load.format(""), repo="user/stock"), expected)
    # or without the import, by the modules that each component brought along
    remote = load.format(", trust_remote_code=True")
    assert np.array_equal(client.images(remote, repo="user/stock"), expected)
    assert "trust_remote_code=True" in client.error(load.format(""), repo="user/stock")


def test_a_text_pipeline_as_one_repository(server, tmp_path, client):
    pipe = diffusers.StableDiffusionPipeline(
        vae=tiny_vae(),
        unet=perturb(tiny_conditional_unet(DDMUNet2DConditionModel)),
        scheduler=DDMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **tiny_text_parts(),
    )
    arguments = {"prompt": ["a cat", "two dogs"], "guidance_scale": 4.0, "generator": seeded(), "output_type": "np"}
    expected = pipe(**arguments, num_inference_steps=3).images
    pipe.save_pretrained(tmp_path / "text")
    push = """
        import ddm_diffusers
        from diffusers import StableDiffusionPipeline
        StableDiffusionPipeline.from_pretrained("text", safety_checker=None).push_to_hub(repo)
        """
    author = Client(server, tmp_path, token=TOKEN)
    assert author.run(push, repo="user/text").exit_code() == 0
    load = """
        import ddm_diffusers
        from diffusers import StableDiffusionPipeline
        pipe = StableDiffusionPipeline.from_pretrained(repo, safety_checker=None)
        for component in (pipe.unet, pipe.vae, pipe.text_encoder):
            for weight in component.parameters():
                weight.data = weight.data.clone()
        arguments = {"prompt": ["a cat", "two dogs"], "guidance_scale": 4.0, "output_type": "np"}
        generator = torch.Generator().manual_seed(0)
        np.save(output, pipe(**arguments, num_inference_steps=3, generator=generator).images)
        """
    assert np.array_equal(client.images(load, repo="user/text"), expected)
    # or without the import, by the modules that unet and scheduler brought along
    remote = load.replace("import ddm_diffusers", "").replace("(repo,", "(repo, trust_remote_code=True,")
    assert np.array_equal(client.images(remote, repo="user/text"), expected)


def test_without_the_package_the_error_says_what_to_install(client, pushed):
    # None in sys.modules is how Python marks a module that cannot be imported
    message = client.error(
        'sys.modules["ddm_diffusers"] = None'
        + textwrap.dedent(WAYS["DiffusionPipeline"]).replace('assert "ddm_diffusers" not in sys.modules', "")
    )
    assert "pip install ddm-diffusers" in message


def test_without_trust_no_code_of_a_repository_runs(client, pushed):
    message = client.error("from diffusers import DiffusionPipeline; DiffusionPipeline.from_pretrained(repo)")
    assert "trust_remote_code=True" in message


def test_a_release_of_diffusers_that_moved_the_place(client):
    message = client.error(
        """
        from diffusers import DiffusionPipeline
        from diffusers.pipelines import pipeline_loading_utils
        del pipeline_loading_utils.LOADABLE_CLASSES
        import ddm_diffusers
        """
    )
    assert "ImportError: ddm_diffusers cannot register" in message and "LOADABLE_CLASSES" in message


@pytest.mark.parametrize(
    "fault", [{"kind": "status", "status": 500}, {"kind": "reset"}, {"kind": "lost"}], ids=lambda fault: fault["kind"]
)
def test_a_push_that_fails_and_then_succeeds(fault, server, saved, tmp_path, client):
    repo = f"user/push-{fault['kind']}"
    author = Client(server, tmp_path, token=TOKEN)
    push = f"from ddm_diffusers import DDMPipeline; DDMPipeline.from_pretrained({str(saved)!r}).push_to_hub(repo)"
    failing = server.fail_next("POST", r"/commit/", **fault)
    author.error(push, repo=repo)
    assert failing.times == 0
    if fault["kind"] != "lost":  # there the commit was made, and only its answer was lost
        assert set(server.files(repo)) == {".gitattributes"}
    assert author.run(push, repo=repo).exit_code() == 0
    assert server.files(repo)[WEIGHTS] == (saved / WEIGHTS).read_bytes()
    assert client.run(LOAD, repo=repo).exit_code() == 0


def test_a_push_without_a_token_that_may_write(server, saved, tmp_path):
    author = Client(server, tmp_path, token="hf_wrong")
    push = f"from ddm_diffusers import DDMPipeline; DDMPipeline.from_pretrained({str(saved)!r}).push_to_hub(repo)"
    assert "401" in author.error(push, repo="user/refused")
    assert "user/refused" not in server.repositories
    author.token = TOKEN
    assert author.run(push, repo="user/refused").exit_code() == 0


@pytest.mark.slow  # the client waits between its attempts
def test_weights_that_are_cut_short(server, client, pushed):
    # the client itself asks six times
    failing = server.fail_next("GET", r"^/storage/.*\.safetensors$", times=6, kind="truncate")
    client.error(LOAD)
    assert failing.times == 0
    assert np.array_equal(client.images(LOAD), pushed)


def test_damaged_weights_are_found(server, client, pushed):
    """By huggingface_hub, which compares sizes alone when it downloads."""
    server.fail_next("GET", r"^/storage/.*\.safetensors$", kind="corrupt")
    run = client.run(
        f"{LOAD}\nfrom huggingface_hub import HfApi; print(HfApi().verify_repo_checksums(repo).mismatches)"
    )
    assert run.exit_code() == 0 and WEIGHTS in run.output, run.output[-3000:]


HOSTILE = {
    "a class that does not exist": (["ddm_diffusers", "Nope"], "ddm_diffusers has no component 'Nope'"),
    "something of ours that is no component": (
        ["ddm_diffusers", "register_with_diffusers"],
        "register_with_diffusers",
    ),
    "a foreign module": (["antigravity", "geohash"], "antigravity"),
    "a module in the repository": (["evil", "Evil"], "trust_remote_code"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_components_are_refused(what, server, client, pushed):
    component, message = HOSTILE[what]
    index = {"_class_name": ["evil", "Evil"], "_diffusers_version": "0.42.1", "unet": component}
    index["scheduler"] = ["ddm_diffusers", "DDMScheduler"]
    evil = b"from pathlib import Path\nPath('touched').touch()\n"
    files = {
        f"{folder}{name}.py": evil for folder in ("", "unet/", "scheduler/") for name in ("evil", "ddm_diffusers")
    }
    files |= {name: data for name, data in server.files(REPO).items() if "/" in name and not name.endswith(".py")}
    server.commit("user/hostile", {**files, "model_index.json": json.dumps(index).encode()})
    assert message in client.error(LOAD, repo="user/hostile")
    assert not (client.folder / "touched").exists()


def test_our_own_class_runs_no_module_of_a_repository(server, client, pushed):
    files = server.files(REPO)
    evil = b"from pathlib import Path\nPath('touched').touch()\n"
    assert {"ddm_pipeline.py", "unet/ddm_diffusers.py", "scheduler/ddm_diffusers.py"} <= set(files)
    server.commit("user/evil", {name: evil if name.endswith(".py") else data for name, data in files.items()})
    assert np.array_equal(client.images(LOAD, repo="user/evil"), pushed)
    assert not (client.folder / "touched").exists()


@pytest.mark.parametrize("way", ["its own class", "components"])
def test_pickles_are_refused(way, server, client, pushed):
    files = {name: data for name, data in server.files(REPO).items() if not name.endswith(".safetensors")}
    server.commit("user/pickle", {**files, "unet/diffusion_pytorch_model.bin": b"\x80\x04N."})
    assert "safetensors" in client.error(WAYS[way], repo="user/pickle")
    assert not list((client.folder / "cache").rglob("*.bin"))


def test_model_card(server, pushed):
    files = server.files(REPO)
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "diffusers"
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert "decoupled-diffusion" in card.data.tags
    assert f'DDMPipeline.from_pretrained("{REPO}")' in card.text
    assert "](samples.png)" in card.text
    assert files["samples.png"].startswith(b"\x89PNG")


def test_the_card_of_a_training_goes_along(saved, tmp_path, server):
    folder = tmp_path / "trained"
    shutil.copytree(saved, folder)
    Image.new("L", (4, 4)).save(folder / "samples.png")
    pipe = DDMPipeline.from_pretrained(saved)
    assert write_model_card(folder, pipe, repo_id="me/other", license="mit", training_command="train it")
    author = Client(server, tmp_path, token=TOKEN)
    push = f"""
        from ddm_diffusers import DDMPipeline
        pipe = DDMPipeline.from_pretrained({str(folder)!r})
        pipe.push_to_hub(repo, private=True)
        pipe.save_pretrained("copy")
        DDMPipeline.from_pretrained(repo).push_to_hub(repo)
        """
    run = author.run(push, repo="user/trained")
    assert run.exit_code() == 0, run.output[-3000:]
    files = server.files("user/trained")
    for card in (files["README.md"].decode(), (tmp_path / "copy" / "README.md").read_text()):
        assert "license: mit" in card and "train it" in card and is_generated_card(card)
    assert '.from_pretrained("user/trained")' in files["README.md"].decode()
    assert "\n# trained\n" in files["README.md"].decode()
    # where it was loaded from is nobody else's business
    assert not [name for name, data in files.items() if str(tmp_path).encode() in data]


def test_weights_on_the_hub_are_those_that_were_saved(server, pushed, saved, tmp_path):
    (tmp_path / "weights").write_bytes(server.files(REPO, "v1")[WEIGHTS])
    there, here = load_file(tmp_path / "weights"), load_file(saved / WEIGHTS)
    assert there.keys() == here.keys() and all(torch.equal(there[name], here[name]) for name in here)
