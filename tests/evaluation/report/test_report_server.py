"""The server of `swin-mim report --serve`: its own secret address, and nothing else."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import made_runs
import pytest

from swin_mim.errors import UserError
from swin_mim.evaluation.report import page, serve
from swin_mim.evaluation.report.serve import ReportServer
from swin_mim.training.run.lock import lock


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReportServer]:
    monkeypatch.setattr(page, "plotly_js", lambda: "")
    with ReportServer([made_runs.pretraining(tmp_path / "demo")]) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def answer(server: ReportServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    """(status, headers, text)"""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=30)  # type: ignore[arg-type]
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    said = connection.getresponse()
    found = said.status, dict(said.getheaders()), said.read().decode()
    connection.close()
    return found


def test_the_address_is_secret_and_of_this_machine_alone(server: ReportServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{server.server_address[1]}/{server.token}/"
    assert len(server.token) == 32
    with ReportServer([]) as other:
        assert other.token != server.token
        with pytest.raises(UserError, match="cannot be served: Address already in use; leave --port out"):
            ReportServer([], other.server_address[1])


def test_it_serves_the_page(server: ReportServer) -> None:
    status, headers, text = answer(server, urlsplit(server.address).path)
    assert status == 200
    assert "<h1>demo</h1>" in text
    assert f'data-live="{headers["ETag"]}"' in text
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert answer(server, urlsplit(server.address).path, "HEAD")[2] == ""


def test_everything_else_is_forbidden(server: ReportServer) -> None:
    token = server.token
    wrong = token[:-1] + ("a" if token[-1] != "a" else "b")
    paths = ["/", "", f"/{wrong}/", f"/{wrong}/body", f"/{token}", f"/{token}/config.yaml", f"/{token}/../{token}/"]
    paths += [f"/{token}/?x", f"/{token}/body/", "/favicon.ico", "/demo/", f"/%2e/{token}/"]
    for path in paths:
        status, headers, text = answer(server, path or "/")
        assert (status, text) == (403, "403: this address has no report\n"), path
        assert "ETag" not in headers
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert answer(server, f"/{token}/", method)[0] == 403


def test_what_has_not_changed_is_not_sent_again(server: ReportServer) -> None:
    path = f"/{server.token}/body"
    status, headers, text = answer(server, path)
    assert status == 200
    assert text.lstrip().startswith("<header>")
    version = headers["ETag"]
    assert answer(server, path, If_None_Match=version)[::2] == (304, "")
    with (server.folders[0] / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 410, "samples_seen": 999_999}) + "\n")
    status, headers, text = answer(server, path, If_None_Match=version)
    assert status == 200
    assert headers["ETag"] != version
    assert "999,999 images seen" in text


def test_a_run_that_is_killed_is_news(server: ReportServer) -> None:
    path, folder = f"/{server.token}/body", server.folders[0]
    (folder / "run_status.json").write_text(json.dumps({"status": "running", "step": 0, "total_steps": 500}))
    held = lock(folder)
    assert held is not None
    _, headers, text = answer(server, path)
    assert " · running · " in text
    assert answer(server, path, If_None_Match=headers["ETag"])[0] == 304
    held.release()  # as the system does where a process is killed: no file changes
    status, _, text = answer(server, path, If_None_Match=headers["ETag"])
    assert status == 200
    assert "Killed or lost at step 400" in text


def test_a_run_that_goes_away_is_no_traceback(server: ReportServer, capfd: pytest.CaptureFixture[str]) -> None:
    server.folders[0] = server.folders[0] / "gone"
    status, _, text = answer(server, f"/{server.token}/")
    assert status == 503
    assert "does not exist" in text
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [BrokenPipeError, ConnectionResetError])
def test_a_browser_that_goes_away_is_no_traceback(
    server: ReportServer, error: type[Exception], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> str:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(serve._Handler, "end_headers", gone)
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            answer(server, f"/{server.token}/")
    assert answer(server, f"/{server.token}/")[0] == 200
    assert capfd.readouterr().err == ""
