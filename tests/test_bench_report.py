"""The HTML page of the benchmark: whole by itself, sortable, rendered by Chromium where that is installed."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from bench_cases import MACHINE, one_thread, run_document, written  # noqa: F401

from bench import plots, report, results
from bench.cli import main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Tables as lists of rows of texts, the addresses that are loaded, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.headings: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.loaded += [value for name, value in attributes if name in ("src", "href") and value]
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1].append(data)
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A result of every kind, and an older one of the same cells."""
    folder = tmp_path_factory.mktemp("results")
    written(folder / "results.json", run_document(1e-3))
    old = run_document(9e-3)
    old["machine"] = {**MACHINE, "date": "2025-12-31 00:00 UTC"}
    written(folder / "old" / "results.json", old)
    norm, timed = {"op": "rms_norm", "version": "1"}, {"threads": 1, "level": "L1"}
    sizes = [(mix, size) for mix in ("1R1W", "2R2W") for size in (1 << 14, 1 << 20)]
    streams = [{**timed, "mix": mix, "bytes": size, "seconds": [size / 1e10]} for mix, size in sizes]
    names = ("torchfastnorm", "aten")
    calls = [{**norm, "case": "forward", "candidate": name, "seconds": [1e-6]} for name in names]
    kept = {**norm, "sizes": [8, 64], "layout": "contiguous", "dtype": "float32", "candidate": "torchfastnorm"}
    step = {"model": "vit_s", "library": "torchfastnorm", "mode": "eager", "layout": "contiguous", "losses": [1.0]}
    lists = {
        "roofline": {"streams": streams},
        "latency": {"calls": calls},
        "memory": {"kept": [{**kept, "saved_bytes": 2048, "new_bytes": 0}]},
        "train": {"steps": [{**step, "seconds": [0.1, 0.2]}]},
    }
    for kind, found in lists.items():
        written(folder / f"{kind}.json", results.document(kind, MACHINE, **found))
    hostile = run_document(1e-3, device="<script>alert(1)</script> & Co")
    written(folder / "other.json", hostile)
    assert main(["report", str(folder)]) == 0
    return folder


def test_the_page_is_whole_by_itself(folder):
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert all(address.startswith(("data:image/svg+xml;base64,", "#")) for address in page.loaded)
    pictures = [base64.b64decode(a.split(",", 1)[1]) for a in page.loaded if a.startswith("data:")]
    assert len(pictures) == 6 and all(b"</svg>" in picture for picture in pictures)
    for heading in ("Test CPU, threads: 1", "Roofline", "Every cell", "The cost of a call", "Kept for the backward",
                    "Training steps", "Roofs, GB/s", "Forward+backward, time of aten / ours"):  # fmt: skip
        assert heading in page.headings
    assert "<script>alert" not in (folder / "report.html").read_text(encoding="utf-8")
    names = {path.name for path in folder.glob("*.png")}
    assert {"roofline-test-cpu-threads-1.png", "ratios-test-cpu-threads-1-aten.png"} <= names


def test_of_two_results_for_a_cell_the_newest_is_shown(folder):
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    (table,) = [t for t in page.tables if t[0][:4] == ["op", "shape", "dtype", "direction"]][:1]
    assert (
        len(table) == 7 and {row[4] for row in table[1:]} == {"1,000.0"} and {row[9] for row in table[1:]} == {"2.00"}
    )


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_chromium_renders_and_sorts_it(folder, tmp_path):
    """A script at its end clicks a header twice, and tells the order of the rows and how many pictures are drawn."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    click = """<script>
    addEventListener("load", () => {
      const table = [...document.querySelectorAll("table")].find(t => t.tHead.textContent.includes("bytes moved"));
      const header = [...table.tHead.rows[0].cells].find(cell => cell.textContent === "bytes moved");
      header.click();
      header.click();
      document.title = [...table.tBodies[0].rows].map(row => row.cells[0].textContent).join("|") + "; "
        + [...document.images].filter(image => image.complete && image.naturalWidth > 100).length;
    });
    </script>"""
    (tmp_path / "page.html").write_text(text.replace("</body>", f"{click}</body>"), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}"]
    command += ["--window-size=1400,2000", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*command, f"file://{tmp_path / 'page.html'}"], capture_output=True, text=True, timeout=120)
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stderr[-500:]
    assert title[1] == "1 MB|0.02 MB; 6"


def test_nothing_timed_draws_nothing():
    assert plots.throughput([]) is None and plots.heat_map([], "aten") is None and plots.roofline([], []) is None
    failed = run_document(1e-3)
    for record in failed["cells"]:
        record["candidates"][0].update(seconds=[], failure="failed: here")
    device = report.device_of("x", [failed])
    assert device.figures == [] and any("failed: here" in remark for remark in device.remarks)
