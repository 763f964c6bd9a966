"""The planner page in a real browser: sliders move N and V, numbers are those of `vtc.scaling.plan`.

Nothing leaves it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from vtc import cost
from vtc.figures import page
from vtc.scaling import fit, published
from vtc.scaling.plan import Request, plan

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-port=0 --remote-allow-origins=*"
)
DRAWS = 120


@pytest.fixture(scope="module")
def fits():
    return {task: fit(published(task)) for task in ("reasoning", "ocr")}


@pytest.fixture(scope="module")
def file(fits, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "planner.html"
    path.write_text(page.html(fits, DRAWS), encoding="utf-8")
    return path


class Tab:
    """One tab over the DevTools protocol; every event is kept."""

    def __init__(self, url: str):
        import websocket

        self.socket, self.count, self.events = websocket.create_connection(url, timeout=30), 0, []

    def call(self, method: str, **params) -> dict:
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while True:
            got = json.loads(self.socket.recv())
            if got.get("id") == self.count:
                assert "error" not in got, got
                return got["result"]
            self.events.append(got)

    def eval(self, code: str):
        got = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def set(self, control: str, value: int | str) -> dict:
        """Moves a control as a hand would (its input event bubbles) and reads the plan."""
        self.eval(
            f"(() => {{ const x = document.getElementById('{control}'); x.value = {json.dumps(value)};"
            "x.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )
        return self.eval("window.planner")


@pytest.fixture(scope="module")
def tab(file, tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    pytest.importorskip("websocket", reason="websocket-client talks to the browser")
    home = tmp_path_factory.mktemp("profile")
    browser = subprocess.Popen(
        [CHROMIUM, *FLAGS.split(), f"--user-data-dir={home}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port = _port(home / "DevToolsActivePort", browser)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=20) as answer:
            target = next(t for t in json.load(answer) if t["type"] == "page")
        tab = Tab(target["webSocketDebuggerUrl"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        tab.call("Page.navigate", url=file.as_uri())
        for _ in range(100):
            if tab.eval("Boolean(window.planner)"):
                break
            time.sleep(0.1)
        yield tab
    finally:
        browser.terminate()
        browser.wait(timeout=20)


def _port(file: Path, browser) -> int:
    for _ in range(300):
        if file.exists() and (lines := file.read_text().split()):
            return int(lines[0])
        assert browser.poll() is None, "the browser ended before it opened its port"
        time.sleep(0.1)
    raise AssertionError("the browser opened no port in 30 s")


def _shown(tab) -> str:
    return tab.eval("document.querySelector('#answer strong').textContent")


def test_a_slider_moves_n_and_v(tab):
    first = tab.eval("window.planner.best")
    assert _shown(tab) == f"N = {first['N']}B{'*' if first['N'] > 7 else ''}, V = {first['V']}"
    tight = tab.set("ttft", 4)["best"]  # 7 ms in place of 50
    assert (tight["N"], tight["V"]) != (first["N"], first["V"])
    assert tight["ttft"] <= 7 and tight["error"] > first["error"]
    assert _shown(tab) == f"N = {tight['N']}B, V = {tight['V']}"
    assert tab.eval("document.querySelector('output[for=ttft]').textContent") == "7 ms"


def test_nothing_fits_is_said(tab):
    assert tab.set("ttft", 0)["best"] is None
    assert _shown(tab) == "Nothing fits"


@pytest.mark.parametrize("task", ["reasoning", "ocr"])
@pytest.mark.parametrize(
    "device, Q, G, batch, ttft",
    [("h200", 50, 32, 8, 50), ("l4", 0, 1, 2, 100), ("a100", 500, 256, 64, 2000), ("xeon2", 50, 8, 1, 2000)],
)
def test_the_page_answers_as_the_plan_does(tab, fits, task, device, Q, G, batch, ttft):
    scales = tab.eval("SCALES")
    tab.set("task", task)
    tab.set("device", device)
    for name, value in {"Q": Q, "G": G, "batch": batch}.items():
        tab.set(name, scales[name].index(value))
    there = tab.set("ttft", scales["ttft"].index(ttft))
    law = fits[task]
    request = Request(Q=Q, G=G, batch=batch, ttft_ms=ttft)
    here = plan(request, cost.hardware(device), law, law.bootstrap(DRAWS))
    assert there["best"] is not None
    for ours, theirs in zip(here.choices, there["choices"]):
        assert (ours.N, ours.V, ours.fits, ours.binds) == (
            theirs["N"],
            theirs["V"],
            theirs["fits"],
            theirs["binds"],
        )
        assert theirs["ttft"] == pytest.approx(ours.ttft_ms, rel=1e-6)
        assert theirs["total"] == pytest.approx(ours.total_ms, rel=1e-6)
        assert theirs["memory"] == pytest.approx(ours.memory_gb, rel=1e-6)
        assert theirs["error"] == pytest.approx(ours.error, rel=1e-9)
        assert theirs["wins"] == pytest.approx(ours.p_best, abs=0.02)  # draws are stored to five digits


def test_no_console_message_and_no_request(tab, file):
    tab.eval("1")  # collects what is left
    said = [
        e
        for e in tab.events
        if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    ]
    assert said == []
    asked = {e["params"]["request"]["url"] for e in tab.events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {file.as_uri()}


@pytest.mark.parametrize("width", [360, 1100])
def test_nothing_is_wider_than_the_screen(tab, width):
    tab.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500
    )
    assert tab.eval("document.documentElement.scrollWidth") <= width


def test_the_file_names_no_other_place(file):
    text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert "http" not in text.replace("http-equiv", "")
    assert len(text) < 1_000_000
