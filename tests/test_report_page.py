"""The page of `klguard report --html`: what is in it, and how a browser shows it, with the network off."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from klguard.findings import Confidence, Finding, Measured, Severity
from klguard.guard.journal import Journal, read
from klguard.report import html
from klguard.report.figures import figures
from klguard.report.violations import violations
from klguard.settings import Place

plotly = pytest.importorskip("plotly", reason="plotly (the report extra) is not installed")

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
PLOTS = {"kl", "exact", "reward", "entropy", "evidence", "causes", "bias"}


def write_journal(
    path: Path, *, steps: int = 60, words: str = "the tokens are not the policy's", **last: Any
) -> Path:
    """A run whose KL sinks below its band from step 40 on, resumed at step 30, with two violations."""
    place = Place("train.py", None, 7, 3, 7, 9)
    for first, until in ((0, 30), (30, steps)):
        with Journal(path, settings={"alpha": 1e-6, "kl_range": (0.0, 10.0), words: words}) as journal:
            for step in range(first, until):
                sunk = max(0, step - 39)
                journal.step(
                    {
                        "step": step,
                        "seconds": float(step),
                        "kl_per_sequence": 0.1 * step - 0.9 * sunk,
                        "kl_standard_error": 0.2,
                        "exact_kl_per_token": 0.002 * step,
                        "k3_per_token": 0.0021 * step,
                        "kl_per_token": 0.002 * step - 0.02 * sunk,
                        "reward": step / steps,
                        "entropy": 2.0 - step / 100,
                        "log_evidence": -2.0 + 1.1 * sunk,
                        "causes": {"top_k=50": 0.6, words: 0.3},
                        "bias_per_sequence": -0.9 * sunk,
                        "bias_standard_error": 0.1,
                        **(last if step == steps - 1 else {}),
                    }
                )
                if step in (50, 55):
                    code, cause = ("KLG701", words) if step == 50 else ("KLG604", "")
                    measured = Measured(step, cause, 0.9, -9.0, 0.1, 0.45)
                    journal.violation(
                        Finding(
                            code,
                            words,
                            Severity.ERROR,
                            Confidence.HIGH,
                            words,
                            place,
                            words,
                            measured=measured,
                        )
                    )
    return path


def page(path: Path) -> str:
    run = read(path)
    return html.page(run, violations(run))


# --- without a browser ----------------------------------------------------------------------------


class Elements(HTMLParser):
    """The elements of a page, its texts, and whether every element is closed."""

    VOID = frozenset(("meta", "br", "img", "link"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.words.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_nothing_on_the_page_is_loaded_from_anywhere(tmp_path: Path):
    elements = Elements(page(write_journal(tmp_path / "run.jsonl")))
    assert not elements.open
    for tag, attributes in elements.found:
        assert not {"src", "href", "srcset", "action"} & attributes.keys(), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    (policy,) = [entry["content"] for entry in elements.named("meta") if "http-equiv" in entry]
    assert policy is not None and policy.startswith("default-src 'none'") and "'unsafe-eval'" not in policy
    assert "script-src 'sha256-" in policy


def test_words_of_the_journal_are_text(tmp_path: Path):
    text = page(write_journal(tmp_path / "run.jsonl", words=HOSTILE))
    elements = Elements(text)
    assert [entry.get("type") for entry in elements.named("script")] == ["application/json", None, None]
    assert not elements.named("img")
    assert "".join(elements.words).count(HOSTILE) >= 5
    (data,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    assert "<" not in data
    (causes,) = [figure for figure in json.loads(data) if figure["name"] == "causes"]
    assert not any("<" in trace["name"] for trace in causes["data"])


def test_the_page_can_be_read_without_seeing_it(tmp_path: Path):
    elements = Elements(page(write_journal(tmp_path / "run.jsonl")))
    assert elements.named("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    heads = elements.named("th")
    assert heads and all(head.get("scope") in ("col", "row") for head in heads)
    assert len(elements.named("caption")) == len(elements.named("table")) == 2
    identifiers = {attributes["id"] for _, attributes in elements.found if "id" in attributes}
    for _, attributes in elements.found:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in identifiers
    words = "".join(elements.words)
    assert "The band is 0 to 10; 15 of 60 steps are outside by more than three standard errors." in words
    assert "The alarm threshold of 14.6 nats is reached at step 55." in words


def test_figures_are_what_plotly_takes(tmp_path: Path):
    graph = pytest.importorskip("plotly.graph_objects")
    run = read(write_journal(tmp_path / "run.jsonl", reward=float("nan"), kl_per_sequence=float("-inf")))
    made = {figure["name"]: figure for figure in figures(run, violations(run))}
    assert made.keys() == PLOTS
    for figure in made.values():
        graph.Figure({"data": figure["data"], "layout": figure["layout"]})  # raises for an unknown property
    curve = next(trace for trace in made["kl"]["data"] if trace["name"].startswith("KL"))
    assert curve["x"] == list(range(60)) and curve["y"][-1] is None
    assert curve["y"][:3] == pytest.approx([0.0, 0.1, 0.2])
    flags = next(trace for trace in made["kl"]["data"] if trace["name"] == "violation")
    assert flags["x"] == [50, 55]
    bounds = {shape["y0"] for shape in made["kl"]["layout"]["shapes"] if shape.get("y0") == shape.get("y1")}
    assert bounds == {0.0, 10.0}
    stacked = [trace["y"] for trace in made["causes"]["data"]]
    assert [sum(weights) for weights in zip(*stacked, strict=True)] == pytest.approx([1.0] * 60)
    resumed = [shape["x0"] for shape in made["reward"]["layout"]["shapes"] if shape["line"]["dash"] == "dash"]
    assert resumed == [30]


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = read(write_journal(tmp_path / "run.jsonl"))
    target = tmp_path / "report.html"
    target.write_text("before")

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(html.os, "replace", fails)
        with pytest.raises(OSError, match="No space"):
            html.write(target, run, violations(run))
    assert target.read_text() == "before"
    html.write(target, run, violations(run))
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(os.listdir(tmp_path)) == ["report.html", "run.jsonl"]


# --- in Chromium ----------------------------------------------------------------------------------

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)

browser_only = pytest.mark.skipif(
    CHROMIUM is None or os.name != "posix", reason=f"none of {', '.join(NAMES)} is on PATH"
)


MOVE = """
import fcntl, os, sys
reads, writes = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(reads, 3)
os.dup2(writes, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Puts two pipes where Chromium expects them, and becomes it."""


class Browser:
    """Chromium without a window or a network, driven through its debugging pipe: JSON messages that end in NUL
    on descriptors 3 and 4 (`--remote-debugging-pipe`)."""

    def __init__(self, profile: Path, *switches: str) -> None:
        reads, self._commands = os.pipe()
        self._answers, writes = os.pipe()
        options = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
            " --disable-dev-shm-usage --remote-debugging-pipe --window-size=1200,900"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", MOVE, str(reads), str(writes), str(CHROMIUM)]
            + [*options.split(), *switches, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(reads, writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(reads)
        os.close(writes)
        self._buffer, self._number, self._session = b"", 0, ""
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Network.emulateNetworkConditions",
            offline=True,
            latency=0,
            downloadThroughput=0,
            uploadThroughput=0,
        )

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def evaluate(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str) -> Any:
        """The value of `expression` once it is true."""
        limit = time.monotonic() + 60
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < limit, f"never true: {expression}"
            time.sleep(0.05)
        return value

    def show(self, path: Path) -> None:
        self.call("Page.navigate", url=path.as_uri())
        self.until("document.readyState === 'complete' && !!document.documentElement.dataset.drawn")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        self.mouse("mouseMoved", x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def middle(self, selector: str) -> tuple[float, float]:
        """The middle of an element, once it is in sight."""
        found = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        return found[0], found[1]

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._answers], [], [], 60)[0], "Chromium does not answer"
            read = os.read(self._answers, 1 << 16)
            assert read, "Chromium went away"
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, details = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown" or (
            method == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning", "assert")
        ):
            self.problems.append(json.dumps(details)[:500])
        elif method == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.problems.append(details["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("chromium"))
    yield started
    started.close()


@pytest.fixture
def shown(browser: Browser, tmp_path: Path) -> Browser:
    """The browser with the page of a run whose words are hostile."""
    run = read(write_journal(tmp_path / "run.jsonl", words=HOSTILE))
    html.write(tmp_path / "report.html", run, violations(run))
    browser.problems.clear()
    browser.requests.clear()
    browser.call("Emulation.clearDeviceMetricsOverride")
    browser.show(tmp_path / "report.html")
    return browser


@browser_only
def test_chromium_draws_every_plot_without_a_complaint_or_a_request(shown: Browser):
    assert shown.evaluate("document.title") == "klguard report: run.jsonl"
    drawn = shown.evaluate(
        "[...document.querySelectorAll('.plot')].map(p => [p.id, p.querySelectorAll('svg.main-svg').length,"
        " p.querySelectorAll('.scatterlayer path.js-line, .scatterlayer path.js-fill').length])"
    )
    assert {name.removeprefix("plot-") for name, _, _ in drawn} == PLOTS
    assert all(canvases >= 2 and lines >= 1 for _, canvases, lines in drawn), drawn
    assert shown.problems == []
    assert [url for url in shown.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert shown.evaluate("typeof window.hacked") == "undefined"
    assert shown.evaluate("document.querySelectorAll('main script, main img').length") == 0


@browser_only
def test_chromium_a_script_that_came_in_by_another_way_would_not_run(shown: Browser):
    shown.evaluate(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 3';"
        " document.body.append(s); })()"
    )
    assert shown.evaluate("typeof window.hacked") == "undefined"
    assert any("Content Security Policy" in problem for problem in shown.problems)


@browser_only
def test_chromium_hovering_over_a_violation_names_its_cause(shown: Browser):
    shown.middle("#plot-kl")
    spot = shown.evaluate(
        "(() => { const p = document.getElementById('plot-kl'), l = p._fullLayout, r = p.getBoundingClientRect();"
        " return [r.x + l.xaxis._offset + l.xaxis.c2p(50), r.y + l.yaxis._offset + l.yaxis.c2p(-4.9)]; })()"
    )
    shown.mouse("mouseMoved", spot[0] - 3, spot[1])
    shown.mouse("mouseMoved", spot[0], spot[1])
    label = shown.until("document.querySelector('#plot-kl .hoverlayer')?.textContent")
    assert "KL, mean of k1" in label and "KLG701" in label and "window.hacked" in label


@browser_only
def test_chromium_a_click_in_the_legend_hides_a_curve(shown: Browser):
    visible = "document.getElementById('plot-exact')._fullData.map(t => t.visible === true)"
    assert shown.evaluate(visible) == [True, True, True]
    shown.click(*shown.middle("#plot-exact .legend .traces:nth-child(2) .legendtoggle"))
    shown.until(f"{visible}.filter(Boolean).length === 2")


@browser_only
def test_chromium_zooming_one_plot_zooms_all(shown: Browser):
    shown.middle("#plot-reward")
    left, right, height = shown.evaluate(
        "(() => { const p = document.getElementById('plot-reward'), l = p._fullLayout, r = p.getBoundingClientRect();"
        " const x = l.xaxis; return [r.x + x._offset + x.c2p(10), r.x + x._offset + x.c2p(20), r.y + 120]; })()"
    )
    shown.mouse("mouseMoved", left, height)
    shown.mouse("mousePressed", left, height, button="left", clickCount=1)
    for share in (0.3, 0.6, 1.0):
        shown.mouse("mouseMoved", left + share * (right - left), height, button="left", buttons=1)
    shown.mouse("mouseReleased", right, height, button="left", clickCount=1)
    ranges = "[...document.querySelectorAll('.plot')].map(p => p._fullLayout.xaxis.range)"
    shown.until(f"{ranges}.every(r => Math.abs(r[0] - 10) < 0.5 && Math.abs(r[1] - 20) < 0.5)")
    shown.evaluate("Plotly.relayout('plot-kl', {'xaxis.autorange': true}).then(() => true)")
    shown.until(f"{ranges}.every(r => r[0] < 1 && r[1] > 58)")


@browser_only
def test_chromium_no_button_sends_the_data_anywhere(shown: Browser):
    titles = shown.evaluate("[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
    assert titles and not [
        title for title in titles if re.search("cloud|share|edit|send", title, re.IGNORECASE)
    ]


@browser_only
def test_chromium_a_dark_desktop_gets_a_dark_page_with_light_ink(shown: Browser):
    brightness = (
        "(c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number); return (r + g + b) / 3; })"
        "(getComputedStyle({}).{})"
    )
    paper = brightness.replace("{}", "document.body", 1).replace("{}", "backgroundColor", 1)
    ink = brightness.replace("{}", "document.querySelector('#plot-kl .xtick text')", 1).replace(
        "{}", "fill", 1
    )
    light = shown.evaluate(paper), shown.evaluate(ink)
    shown.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    shown.until(f"{ink} > 150")
    dark = shown.evaluate(paper)
    shown.call("Emulation.setEmulatedMedia", features=[])
    assert light[0] > 200 > 100 > light[1] and dark < 60


@browser_only
def test_chromium_the_page_fits_a_phone(shown: Browser):
    shown.call("Emulation.setDeviceMetricsOverride", width=360, height=700, deviceScaleFactor=2, mobile=True)
    shown.until("[...document.querySelectorAll('.plot svg.main-svg')].every(s => s.clientWidth <= 360)")
    assert shown.evaluate("document.documentElement.scrollWidth") <= 360
