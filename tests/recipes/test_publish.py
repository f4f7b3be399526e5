"""The recipe publishes on a Hub: checked before, pushed between and at the end, kept when the push fails."""

import shlex
import threading
import time
from pathlib import Path

import pytest
import run_recipe
import torch
from loopback_hub import Refused
from safetensors.torch import load

from swin_mim import SimMIM

ROOT = Path(__file__).parents[2]


def run(recipe, environment, name, *flags, expect=0, from_nothing=False):
    """One run whose client finds the Hub; the output."""
    start = recipe.start_from_nothing if from_nothing else recipe.start
    process = start(name, *flags, variables=environment)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == expect, output
    return output


def canaries(folder, *tokens):
    """Files below a folder that hold a token."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if any(token.encode() in path.read_bytes() for token in tokens)]


def test_a_run_is_pushed_between_and_at_its_end(recipe, hub, client_environment):
    repo = f"{hub.user}/pushed"
    flags = ["--hub.repo", repo, "--hub.every", "1", "--hub.license", "cc-by-4.0"]
    output = run(recipe, client_environment, "pushed", *flags)
    assert "published: " in output
    assert hub.repo(repo).private
    _, (_, middle), (_, final) = hub.commits(repo)
    folder = recipe.path("pushed")
    assert {name: final[name] for name in final if name != ".gitattributes"} == {
        path.name: path.read_bytes() for path in (folder / "export").iterdir()
    }
    at_step_5 = SimMIM.from_pretrained(folder / "checkpoints" / "step_0000000005").encoder.state_dict()
    assert all(torch.equal(value, at_step_5[name]) for name, value in load(middle["model.safetensors"]).items())
    assert "license: cc-by-4.0" in final["README.md"].decode()
    assert hub.token not in output
    assert canaries(folder, hub.token) == []
    assert canaries(folder / "export", str(recipe.folder)) == []


def test_without_write_access_nothing_starts(recipe, hub, client_environment):
    environment = client_environment | {"HF_TOKEN": hub.readonly_token}
    output = run(recipe, environment, "refused", "--hub.repo", f"{hub.user}/refused", expect=2)
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert hub.readonly_token not in output
    assert not (recipe.path("refused") / "checkpoints").exists()


def test_a_push_that_fails_loses_nothing(recipe, hub, client_environment):
    """The first push is broken off and the run goes on; the last one too, and the command that is printed mends it."""
    repo = f"{hub.user}/unlucky"

    def refuse():
        hub.before_commit = refuse
        raise Refused(503, "not now")

    hub.before_commit = refuse
    output = run(recipe, client_environment, "unlucky", "--hub.repo", repo, "--hub.every", "1", expect=2)
    assert len(hub.commits(repo)) == 1
    *_, last = output.strip().splitlines()
    assert "step     10/10" in output
    _, *command = shlex.split(last[last.index("swin-mim push") :])[:4]
    hub.before_commit = None
    code, said = run_recipe.command(*command, folder=recipe.folder, variables=client_environment)
    assert code == 0, said
    assert set(hub.commits(repo)[-1][1]) >= {"model.safetensors", "mim_head.safetensors", "config.json", "README.md"}
    assert hub.token not in output + said


def test_a_slow_push_does_not_hold_the_run_up(recipe, hub, client_environment):
    """The first push lasts until the last step is done: others are left out, and each commit is of its own step."""
    repo = f"{hub.user}/slow"
    last = recipe.path("slow") / "checkpoints" / "step_0000000010"

    def wait():
        for _ in range(2000):
            if last.exists():
                return
            time.sleep(0.05)

    hub.before_commit = wait
    output = run(recipe, client_environment, "slow", "--hub.repo", repo, "--hub.every", "1", "--save.every", "2 steps")
    assert "still under way: slow, step 4 of 10 is not pushed" in output
    assert "pushed slow, step 2 of 10" in output
    _, (_, early), (_, final) = hub.commits(repo)
    assert "| Steps | 2 |" in early["README.md"].decode()
    assert "| Steps | 10 |" in final["README.md"].decode()
    assert early["model.safetensors"] != final["model.safetensors"]


@pytest.mark.slow
def test_a_stop_is_neither_exported_nor_delayed_by_a_push(recipe, hub, client_environment):
    repo = f"{hub.user}/stopped"
    release = threading.Event()
    hub.before_commit = lambda: release.wait(60) and None
    flags = ["--hub.repo", repo, "--hub.every", "1", "--save.every", "2 steps", "--train.stop_after", "5 steps"]
    output = run(recipe, client_environment, "stopped", *flags, from_nothing=True)
    assert f"a push to {repo} was under way and is given up" in output
    assert len(hub.commits(repo)) == 1
    release.set()
    hub.before_commit = None
    assert "published: " in run(recipe, client_environment, "stopped", "--hub.repo", repo)


def test_what_would_be_refused_at_the_end_is_refused_at_the_start(recipe):
    for name, flags, text in [
        (
            "windows",
            ["--hub.transformers", "--model.window_size", "6"],
            "hub.transformers: transformers has one window",
        ),
        ("license", ["--hub.license", "my own!"], "no identifier of the Hub"),
    ]:
        output = recipe.run(name, *flags, expect=2)
        assert text in output
        assert output.strip().count("\n") == 0
        assert not (recipe.path(name) / "checkpoints").exists()
    (recipe.path("taken") / "export").mkdir(parents=True)
    (recipe.path("taken") / "export" / "thesis.tex").touch()
    assert "thesis.tex, which is no part" in recipe.run("taken", expect=2)
