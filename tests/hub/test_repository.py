"""The Hub's true client, in processes of its own, against a Hub on loopback that refuses, breaks off and lies."""

import json
import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import FIRST_FILE, LoopbackHub

from swin_mim.hub.repository import is_published, is_repo_name

Environment = dict[str, str]

MODEL = {
    "README.md": b"---\nlicense: mit\n---\n# A model\n",
    "config.json": b'{"architecture": "swin"}',
    "loss.png": b"\x89PNG not really",
    "mim_head.safetensors": bytes(range(256)) * 40,
    "model.safetensors": bytes(range(255)) * 1000,
    "transformers/config.json": b"{}",
}
SMALL_MODEL = {name: MODEL[name] for name in ("README.md", "config.json", "model.safetensors")}
CALLER = """
import json, os, resource, sys
from pathlib import Path
from urllib.request import urlopen
from swin_mim.errors import UserError
from swin_mim.hub import repository

task = json.loads(sys.argv[1])
repository.FIRST_ANSWER = task["patience"]
if task["largest_file"]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (task["largest_file"], resource.RLIM_INFINITY))
answers = []
for name, arguments, options in task["calls"]:
    if name == "fail_after":
        with urlopen("/".join([os.environ["HF_ENDPOINT"], "loopback/fail-after", *map(str, arguments)])) as reply:
            answers.append(["value", str(json.load(reply))])
        continue
    if name == "push":
        arguments[0] = Path(arguments[0])
    try:
        answers.append(["value", str(getattr(repository, name)(*arguments, **options))])
    except UserError as error:
        answers.append(["error", str(error)])
Path(sys.argv[2]).write_text(json.dumps(answers))
"""


@dataclass
class Answer:
    """What one call returned, or the message of its UserError."""

    value: str | None = None
    error: str | None = None


@dataclass
class Done:
    answers: list[Answer]
    output: str


def call(name: str, *arguments: Any, **options: Any) -> tuple[str, list[str], dict[str, Any]]:
    return name, [str(argument) if isinstance(argument, Path) else argument for argument in arguments], options


def run_calls(environment: Environment, *calls: Any, patience: float = 10, largest_file: int = 0) -> Done:
    """Make calls of swin_mim.hub.repository in one new process. Any other error than a UserError fails the test.

    Whatever happens, no token may show, and a message is one line.
    """
    home = Path(environment["HF_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    task = json.dumps({"calls": calls, "patience": patience, "largest_file": largest_file})
    command = [sys.executable, "-c", CALLER, task, str(home / "answers")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answers = [Answer(**{kind: text}) for kind, text in json.loads((home / "answers").read_text())]
    for text in [done.stdout, done.stderr, *(answer.error or answer.value or "" for answer in answers)]:
        assert "Canary" not in text
        if "HF_TOKEN" in environment:
            assert environment["HF_TOKEN"] not in text
    assert not [answer.error for answer in answers if answer.error and "\n" in answer.error]
    return Done(answers, done.stdout + done.stderr)


def one_call(environment: Environment, name: str, *arguments: Any, **options: Any) -> Answer:
    return run_calls(environment, call(name, *arguments, **options)).answers[0]


def lay_out(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Push and fetch.


def test_what_is_pushed_in_one_private_commit_comes_back_byte_for_byte(
    hub: LoopbackHub, client_environment: Environment, tmp_path: Path
) -> None:
    folder, repo = lay_out(tmp_path / "export", MODEL), f"{hub.user}/model"
    done = run_calls(
        client_environment,
        call("check_write_access", repo),
        call("push", folder, repo, message="Ours"),
        call("fetch", repo, ["config.json", "model.safetensors"], optional=["mim_head.safetensors", "no.safetensors"]),
        call("fetch", repo, ["transformers/config.json"]),
    )
    user, url, fetched, inner = (Path(str(answer.value)) for answer in done.answers)
    _, (oid, files) = hub.commits(repo)
    assert (str(user), files) == (hub.user, FIRST_FILE | MODEL)
    assert str(url) == str(Path(f"{hub.url}/{repo}/commit/{oid}"))
    assert hub.repo(repo).private
    asked = ("config.json", "model.safetensors", "mim_head.safetensors", "transformers/config.json")
    assert contents(fetched) == {name: MODEL[name] for name in asked}  # and nothing else
    assert inner == fetched
    assert fetched.name == oid
    assert done.output == ""  # no bars, no warnings
    assert contents(folder) == MODEL


def test_a_token_stays_in_the_header_that_is_its_place(
    hub: LoopbackHub, client_environment: Environment, tmp_path: Path
) -> None:
    folder, repo = lay_out(tmp_path / "export", MODEL), f"{hub.user}/model"
    token = client_environment.pop("HF_TOKEN")
    run_calls(
        client_environment,
        call("push", folder, repo, message="Ours", token=token),
        call("fetch", repo, ["config.json"], token=token),
    )
    assert any(token in headers.get("authorization", "") for _, _, headers in hub.requests)
    for _, path, headers in hub.requests:
        assert token not in path
        assert not [name for name, value in headers.items() if token in value and name != "authorization"]
    assert not [path for path, content in contents(tmp_path).items() if token.encode() in content]


def test_the_next_push_replaces_and_deletes_our_files_and_leaves_others_alone(
    hub: LoopbackHub, client_environment: Environment, tmp_path: Path
) -> None:
    repo = f"{hub.user}/model"
    foreign = dict.fromkeys(
        ("LICENSE", "docs/picture.png", "weights.bin", "banner.png", "transformers/tokenizer.json"), b"theirs"
    )
    hub.write(repo, foreign | MODEL | {"card_old.png": b"stale"}, private=True)
    less = {name: MODEL[name] for name in ("README.md", "config.json")} | {"model.safetensors": b"new weights"}
    assert one_call(client_environment, "push", lay_out(tmp_path / "export", less), repo, message="Less").value
    *_, (_, files) = hub.commits(repo)
    assert files == FIRST_FILE | foreign | less
    assert len(hub.commits(repo)) == 3  # the empty one, theirs, ours


def test_pushing_the_same_again_makes_no_commit(
    hub: LoopbackHub, client_environment: Environment, tmp_path: Path
) -> None:
    folder, repo = lay_out(tmp_path / "export", MODEL), f"{hub.user}/model"
    again = call("push", folder, repo, message="Ours")
    first, second = run_calls(client_environment, again, again).answers
    assert first.value == second.value
    assert len(hub.commits(repo)) == 2


def test_a_push_goes_to_the_chosen_branch(hub: LoopbackHub, client_environment: Environment, tmp_path: Path) -> None:
    folder, repo = lay_out(tmp_path / "export", MODEL), f"{hub.user}/model"
    hub.write(repo, {"LICENSE": b"", "README.md": b"kept", "card_old.png": b"stale"}, private=True)
    hub.repo(repo).branches["next"] = hub.repo(repo).branches["main"]
    done = run_calls(
        client_environment,
        call("push", folder, repo, message="Ours", revision="next"),
        call("push", folder, repo, message="Ours", revision="nowhere"),
    )
    assert done.answers[0].value
    assert hub.repo(repo).at("next").files == FIRST_FILE | {"LICENSE": b""} | MODEL
    assert hub.repo(repo).at("main").files == FIRST_FILE | {
        "LICENSE": b"",
        "README.md": b"kept",
        "card_old.png": b"stale",
    }
    assert "no such branch" in str(done.answers[1].error)
    assert "--revision nowhere" in str(done.answers[1].error)


def test_a_commit_in_between_is_built_upon_and_not_undone(
    hub: LoopbackHub, client_environment: Environment, tmp_path: Path
) -> None:
    folder, repo = lay_out(tmp_path / "export", MODEL), f"{hub.user}/model"
    hub.write(repo, MODEL, private=True)
    hub.before_commit = lambda: hub.write(
        repo, {"LICENSE": b"theirs", "config.json": b"theirs", "card_new.png": b"theirs"}
    )
    (folder / "README.md").write_bytes(b"---\nlicense: mit\n---\nChanged")
    assert one_call(client_environment, "push", folder, repo, message="Ours").value
    *_, (_, files) = hub.commits(repo)
    assert files == FIRST_FILE | contents(folder) | {"LICENSE": b"theirs"}


def test_a_fetch_is_of_one_commit_whatever_is_pushed_meanwhile(
    hub: LoopbackHub, client_environment: Environment
) -> None:
    repo = f"{hub.user}/model"
    names = ["config.json", "model.safetensors", "README.md"]
    old = hub.write(repo, dict.fromkeys(names, b"old"), private=True)
    handle = hub.handle

    def push_after_the_first_file(request: Any) -> Any:
        reply = handle(request)
        if request.method == "GET" and request.path.endswith("config.json"):
            hub.write(repo, dict.fromkeys(names, b"new"))
        return reply

    hub.handle = push_after_the_first_file  # type: ignore[method-assign]
    try:
        fetched = Path(str(one_call(client_environment, "fetch", repo, names).value))
    finally:
        del hub.handle
    assert contents(fetched) == dict.fromkeys(names, b"old")
    assert fetched.name == old


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: LoopbackHub, client_environment: Environment) -> None:
    repo = f"{hub.user}/model"
    first = hub.write(repo, {"config.json": b"1"})
    hub.repo(repo).tags["v1"] = first
    second = hub.write(repo, {"config.json": b"2"})
    hub.repo(repo).branches["a/b"] = hub.repo(repo).branches["main"]
    revisions = {"v1": first, first: first, "main": second, "a/b": second, None: second}
    calls = [call("fetch", repo, ["config.json"], revision=revision) for revision in revisions]
    answers = run_calls(client_environment, *calls).answers
    assert [Path(str(answer.value)).name for answer in answers] == list(revisions.values())


def test_the_cache_does_without_the_hub(tmp_path: Path) -> None:
    names, optional = ["config.json", "model.safetensors"], ["mim_head.safetensors", "absent.json"]
    with LoopbackHub() as hub:
        environment = hub.environment(tmp_path / "home")
        hub.write("ada/model", MODEL, private=True)
        online = one_call(environment, "fetch", "ada/model", names, optional=optional)
    again = call("fetch", "ada/model", names, optional=optional)
    asked_for = call("fetch", "ada/model", names, optional=optional, local_files_only=True)
    by_commit = call("fetch", "ada/model", names, revision=Path(str(online.value)).name, local_files_only=True)
    more = call("fetch", "ada/model", ["README.md"], local_files_only=True)
    stopped = run_calls(environment, again, asked_for, by_commit, more)
    assert online.value
    assert [answer.value for answer in stopped.answers[:3]] == [online.value] * 3
    assert "local_files_only is true" in str(stopped.answers[3].error)
    assert "README.md" in str(stopped.answers[3].error)
    assert stopped.output.count("loaded from the cache") == 1  # said where nobody has asked for it
    set_offline = run_calls(environment | {"HF_HUB_OFFLINE": "1"}, again, call("fetch", "ada/other", names))
    assert set_offline.answers[0].value == online.value
    assert "HF_HUB_OFFLINE is set" in str(set_offline.answers[1].error)


# Errors.


def test_every_refusal_to_load_says_why_in_one_line(
    hub: LoopbackHub, client_environment: Environment, tmp_path: Path
) -> None:
    user = hub.user
    hub.write(f"{user}/model", MODEL)
    hub.write(f"{user}/old", {"pytorch_model.bin": b"\x80", "config.json": b"{}"})
    hub.write(f"{user}/gated", MODEL)
    hub.repo(f"{user}/gated").gated = True
    hub.write("stranger/secret", MODEL, private=True)
    names = ["config.json", "model.safetensors"]
    expected = [
        (call("fetch", f"{user}/none", names), ["no such repository", "hf auth login", "HF_TOKEN", hub.url]),
        (call("fetch", "stranger/secret", names), ["no such repository", "private", "hf auth login"]),
        (call("fetch", f"{user}/model", names, token="hf_WrongCanary0123456789"), ["does not know this token"]),
        (call("fetch", f"{user}/model", names, revision="v9"), ["no such branch, tag or commit"]),
        (call("fetch", f"{user}/model", names, revision="0" * 40), ["no such branch, tag or commit"]),
        (call("fetch", f"{user}/model", ["config.json", "absent.json"]), ["no absent.json", "README.md"]),
        (call("fetch", f"{user}/old", names), ["no model.safetensors", "pytorch_model.bin", "swin-mim convert"]),
        (call("fetch", f"{user}/gated", names), ["let you in", f"{hub.url}/{user}/gated"]),
        (call("fetch", "no name", names), ["no name"]),
        (call("fetch", f"{user}/model", ["../../evil"]), ["no path inside a repository"]),
        (call("fetch", f"{user}/model", ["/etc/passwd"]), ["no path inside a repository"]),
    ]
    answers = run_calls(client_environment, *(asked for asked, _ in expected)).answers
    for (asked, phrases), answer in zip(expected, answers, strict=True):
        assert answer.error is not None, asked
        assert [phrase for phrase in phrases if phrase not in answer.error] == [], answer.error
    del client_environment["HF_TOKEN"]
    hub.write(f"{user}/private", MODEL, private=True)
    assert "log in with `hf auth login` or set HF_TOKEN" in str(
        one_call(client_environment, "fetch", f"{user}/private", names).error
    )


def test_no_connection_and_no_answer_are_told_soon_and_with_the_address(
    client_environment: Environment, tmp_path: Path
) -> None:
    folder = lay_out(tmp_path / "export", MODEL)
    asked = [call("fetch", "ada/model", ["a"]), call("push", folder, "ada/model", message="x")]
    asked += [call("check_write_access", "ada/model")]
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"http://user:secret@127.0.0.1:{silent.getsockname()[1]}"
        environment = client_environment | {"HF_ENDPOINT": address}
        refused = run_calls(environment, *asked)
        silent.listen(16)  # connects, and never says a word
        unanswered = run_calls(environment, *asked, patience=0.2)
    for answer in refused.answers + unanswered.answers:
        assert "no connection to http://***@127.0.0.1:" in str(answer.error)
        assert "secret" not in str(answer.error)
    assert "swin-mim push" in str(unanswered.answers[1].error)
    assert contents(folder) == MODEL


def test_a_full_disk_is_told(hub: LoopbackHub, client_environment: Environment) -> None:
    repo = f"{hub.user}/model"
    hub.write(repo, MODEL)
    fetch = call("fetch", repo, ["config.json", "model.safetensors"])
    (answer,) = run_calls(client_environment, fetch, largest_file=100_000).answers
    assert "the disk is full" in str(answer.error)
    assert client_environment["HF_HOME"] in str(answer.error)
    assert run_calls(client_environment, fetch).answers[0].value  # nothing half-written is taken for whole


def test_who_may_not_write_hears_it_before_the_run(
    hub: LoopbackHub, client_environment: Environment, tmp_path: Path
) -> None:
    user = hub.user
    hub.write(f"{user}/mine", {"a": b""}, private=True)
    hub.write(f"{user}/public", {"a": b""})
    hub.write("stranger/public", {"a": b""})
    reading, wrong = {"token": hub.readonly_token}, {"token": "hf_WrongCanary0123456789"}
    expected = [
        (call("check_write_access", f"{user}/mine", **reading), ["may", "write"]),
        (call("check_write_access", f"{user}/new", **reading), ["may", "write"]),
        (call("check_write_access", f"{user}/mine", **wrong), ["does not know this token"]),
        (call("check_write_access", "stranger/new"), ["may not"]),
        (call("check_write_access", "stranger/public", private=False), ["may not"]),
        (call("check_write_access", f"{user}/public"), ["is public", "--hub.private false"]),
        (call("check_write_access", "model"), ["no name of a repository", "user/name"]),
    ]
    accepted = [
        call("check_write_access", f"{user}/mine"),
        call("check_write_access", f"{user}/new"),
        call("check_write_access", f"{user}/shown", private=False),
        call("check_write_access", f"{user}/public", private=False),
    ]
    answers = run_calls(client_environment, *(asked for asked, _ in expected), *accepted).answers
    for (asked, phrases), answer in zip(expected, answers, strict=False):
        assert answer.error is not None, asked
        assert [phrase for phrase in phrases if phrase not in answer.error] == [], answer.error
    assert [answer.value for answer in answers[len(expected) :]] == [user] * len(accepted)
    assert hub.repo(f"{user}/new").private
    assert not hub.repo(f"{user}/shown").private
    assert not hub.repo(f"{user}/public").private
    assert ("models", "stranger/new") not in hub.repos
    del client_environment["HF_TOKEN"]
    assert "there is no token" in str(one_call(client_environment, "check_write_access", f"{user}/mine").error)


def test_a_push_is_private_unless_said_otherwise(
    hub: LoopbackHub, client_environment: Environment, tmp_path: Path
) -> None:
    folder, user = lay_out(tmp_path / "export", MODEL), hub.user
    hub.write(f"{user}/public", {"a": b""})
    refused, new, agreed = run_calls(
        client_environment,
        call("push", folder, f"{user}/public", message="x"),
        call("push", folder, f"{user}/new", message="x", private=False),
        call("push", folder, f"{user}/public", message="x", private=False),
    ).answers
    assert "is public" in str(refused.error)
    assert "--public" in str(refused.error)
    assert new.value
    assert agreed.value
    assert not hub.repo(f"{user}/new").private
    assert len(hub.commits(f"{user}/public")) == 3


def test_a_refused_push_names_the_folder_and_the_command(
    hub: LoopbackHub, client_environment: Environment, tmp_path: Path
) -> None:
    folder = lay_out(tmp_path / "with space", MODEL)
    hub.write("stranger/public", {"a": b""})
    answer = one_call(client_environment, "push", folder, "stranger/public", message="x", private=False)
    assert "Forbidden: Bearer hf_... must be" in str(answer.error)
    assert str(answer.error).endswith(
        f"; {folder} is whole and kept, try again with: swin-mim push '{folder}' stranger/public --public"
    )


def test_a_folder_that_would_publish_too_much_is_refused_and_nothing_is_asked(
    hub: LoopbackHub, client_environment: Environment, tmp_path: Path
) -> None:
    lay_out(
        tmp_path,
        dict.fromkeys(
            (
                "secret.txt",
                "hidden/.env",
                "notes/notes.txt",
                "inside/card_a.png",
                "linked/card_a.png",
                "linked_folder/card_a.png",
            ),
            b"",
        ),
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "linked" / "card_b.png").symlink_to("../secret.txt")
    (tmp_path / "linked_folder" / "card_b.png").symlink_to("../inside")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "card_b.png").symlink_to("nothing")
    (tmp_path / "inside" / "card_b.png").symlink_to("card_a.png")
    repo = f"{hub.user}/model"
    expected = {
        "none": "no folder",
        "secret.txt": "no folder",
        "empty": "is empty",
        "hidden": ".env is no part of a published model",
        "notes": "notes.txt is no part of a published model",
        "linked": "leads out of the folder",
        "linked_folder": "leads out of the folder",
        "broken": "is no file",
    }
    calls = [call("push", tmp_path / name, repo, message="x") for name in expected]
    answers = run_calls(client_environment, *calls).answers
    for phrase, answer in zip(expected.values(), answers, strict=True):
        assert phrase in str(answer.error)
    assert hub.requests == []
    assert one_call(client_environment, "push", tmp_path / "inside", repo, message="x").value
    assert hub.commits(repo)[-1][1]["card_b.png"] == b""


def test_a_card_that_cannot_be_read_and_a_gitignore_stop_a_push(
    hub: LoopbackHub, client_environment: Environment, tmp_path: Path
) -> None:
    unreadable = lay_out(tmp_path / "unreadable", {"README.md": b"\xff\xfe"})
    unended = lay_out(tmp_path / "unended", {"README.md": b"---\nlicense: mit\n"})
    good, repo = lay_out(tmp_path / "export", MODEL), f"{hub.user}/ignoring"
    hub.write(repo, {".gitignore": b"*.png"}, private=True)
    calls = [call("push", card, f"{hub.user}/new", message="x") for card in (unreadable, unended)]
    *cards, ignoring = run_calls(client_environment, *calls, call("push", good, repo, message="x")).answers
    assert "codec can't decode" in str(cards[0].error)
    assert "Invalid metadata in README.md. - The front matter has no end - So it" in str(cards[1].error)
    assert ".gitignore" in str(ignoring.error)
    assert len(hub.commits(repo)) == 2


# Broken connections.


LOSSES = [(there, carried_out) for there in (True, False) for carried_out in (False, True)]
WRITES = ["create", "card", "preupload", "batch", "upload", "verify", "commit"]


def push_through_failures(folder: Path, home: Path, there: bool, carried_out: bool) -> list[str]:
    """Push to one repository after the other, the k-th time breaking the k-th write -> the writes that a push cannot
    get over. Checks that each repository is unchanged or complete, and that trying again completes it.
    """
    old = {"config.json": b"old", "model.safetensors": b"old", "card_old.png": b"old"}
    unchanged, whole = [FIRST_FILE, FIRST_FILE | old] if there else [FIRST_FILE], FIRST_FILE | SMALL_MODEL
    writes = WRITES[1:] if there else WRITES
    repos = [f"ada/model{number}" for number in range(len(writes) + 1)]
    pushes = [call("push", folder, repo, message="Ours") for repo in repos]
    faults = [call("fail_after", number + 1, int(carried_out)) for number in range(len(repos))]
    with LoopbackHub() as hub:
        for repo in repos if there else []:
            hub.write(repo, old, private=True)
        environment = hub.environment(home)
        calls = [one for pair in zip(faults, pushes, strict=True) for one in pair] + [call("fail_after", 0, 0)]
        answers = run_calls(environment, *calls).answers
        states = [[files for _, files in hub.commits(repo)] for repo in repos]
        retried = run_calls(environment, *pushes).answers
        final = [[files for _, files in hub.commits(repo)] for repo in repos]
    was_due = [answer.value for answer in answers[2::2]]
    assert was_due == ["False"] * len(writes) + ["True"]  # it broke at every write that there is, and not at the last
    for answer, repo, state in zip(answers[1::2], repos, states, strict=True):
        if answer.error is None:
            assert state == [*unchanged, whole]
        else:
            assert state in ([[]] if not there else []) + [unchanged] + [[*unchanged, whole]] * carried_out
            assert "no connection" in answer.error
            assert f"{folder} is whole and kept, try again with: swin-mim push {folder} {repo}" in answer.error
    assert [answer.error for answer in retried] == [None] * len(repos)
    assert final == [[*unchanged, whole]] * len(repos)
    return [name for name, answer in zip(writes, answers[1::2], strict=False) if answer.error]


def test_a_connection_that_breaks_at_any_write_leaves_all_or_nothing(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "export", SMALL_MODEL)
    with ThreadPoolExecutor(len(LOSSES)) as threads:
        homes = [tmp_path / f"home{number}" for number in range(len(LOSSES))]
        failed = list(threads.map(lambda loss, home: push_through_failures(folder, home, *loss), LOSSES, homes))
    assert failed == [["card", "commit"]] * 2 + [["create", "card", "commit"]] * 2  # the client repeats the others
    assert contents(folder) == SMALL_MODEL


# A Hub that lies.


def test_names_and_hashes_of_a_hostile_hub_write_nothing_elsewhere(
    hub: LoopbackHub, client_environment: Environment, tmp_path: Path
) -> None:
    repo = f"{hub.user}/model"
    hub.write(repo, MODEL | {"../../../evil": b"evil", "/tmp/evil": b"evil", "transformers/../../evil": b"evil"})
    home = Path(client_environment["HF_HOME"])
    fetched = one_call(client_environment, "fetch", repo, ["config.json"], optional=["model.safetensors"]).value
    assert set(contents(Path(str(fetched)))) == {"config.json", "model.safetensors"}
    for commit in hub.repo(repo).commits:
        commit.oid = "../../../../evil"
    hub.repo(repo).branches["main"] = "../../../../evil"
    assert "that is none" in str(one_call(client_environment, "fetch", repo, ["README.md"]).error)
    assert not [path for path in tmp_path.rglob("*evil*") if home not in path.parents]
    assert not [path for path in home.rglob("*evil*") if b"evil" in path.read_bytes()]


# Xet.


def test_push_and_fetch_go_through_xet(hub: LoopbackHub, client_environment: Environment, tmp_path: Path) -> None:
    pytest.importorskip("hf_xet", reason="the client has no Xet on this machine")
    del client_environment["HF_HUB_DISABLE_XET"]
    hub.xet = tmp_path / "store" / "xet"
    hub.xet.mkdir(parents=True)
    weights = {"config.json": b"{}", "model.safetensors": os.urandom(300_000), "mim_head.safetensors": os.urandom(999)}
    folder, repo = lay_out(tmp_path / "export", weights), f"{hub.user}/model"
    pushed = run_calls(client_environment, call("push", folder, repo, message="Ours"))
    fetched = run_calls(client_environment, call("fetch", repo, list(weights)))  # each process locks its store
    assert contents(Path(str(fetched.answers[0].value))) == weights
    assert hub.commits(repo)[-1][1] == FIRST_FILE | weights
    assert len(hub.commits(repo)) == 2
    assert pushed.output + fetched.output == ""
    paths = " ".join(path for _, path, _ in hub.requests)
    assert "xet-write-token" in paths
    assert "xet-read-token" in paths
    assert "objects/batch" not in paths
    assert "resolve/" + hub.commits(repo)[-1][0] + "/model" in paths


# Names and messages.


@pytest.mark.parametrize(
    ("text", "is_name"),
    [
        ("user/name", True),
        ("User-1/na.me_2", True),
        ("name", False),
        ("a/b/c", False),
        ("./runs", False),
        ("../runs", False),
        ("/tmp", False),
        ("user/", False),
        ("/name", False),
        ("user/na me", False),
        ("user/na--me", False),
        ("user/name.git", False),
        ("", False),
    ],
)
def test_the_name_of_a_repository_is_told_from_a_path(text: str, is_name: bool) -> None:
    assert is_repo_name(text) is is_name


def test_a_path_that_exists_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_repo_name("runs/first")
    (tmp_path / "runs" / "first").mkdir(parents=True)
    assert not is_repo_name("runs/first")


def test_ours_is_what_a_published_model_consists_of() -> None:
    ours = ["model.safetensors", "mim_head.safetensors", "README.md", "config.json"]
    ours += ["loss.png", "card_a.png", "transformers/config.json"]
    theirs = ["LICENSE", "docs/a.png", "x.bin", "transformers", "a/README.md", "a.png", "transformers/x/y"]
    assert [name for name in ours + theirs if is_published(name)] == ours


def test_the_client_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, swin_mim.hub.repository; print(sorted({'huggingface_hub', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\[\]\s*", done.stdout)
