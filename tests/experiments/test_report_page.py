"""The report's page in a browser, where there is one: it works without a network."""

import json
import re

import numpy as np
import pytest
from browser import CHROMIUM, browser
from made_up_runs import made_up_run, write_runs

from routing_gym.experiments.engine.metrics import METRICS, Metric, register_metric
from routing_gym.experiments.engine.report import write_report

EVIL = "</script><script>window.evil = 1</script><b>&amp; $data"


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here to look at the page with")


@pytest.fixture
def margin():
    """A metric that a user registers, with a curve."""
    register_metric(Metric("margin", "<i>margin</i>", lambda judged: 0.5, digits=1, curve=True, better="more"))
    yield
    del METRICS["margin"]


@pytest.fixture
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found
    assert found.errors == []
    assert all(url.startswith("file://") and url.endswith(".html") for url in found.requests)


@needs_chromium
@pytest.mark.long
def test_the_page_works_without_a_network(page, margin, tmp_path):
    rng = np.random.default_rng(0)
    records = [
        made_up_run(agent, seed, rng=rng, options={"text": EVIL}) for agent in ("wpl", "shared") for seed in (0, 1, 2)
    ]
    records += [made_up_run(EVIL, seed, level=0.7, rng=rng, label=EVIL, commit="<u>") for seed in (0, 1, 2)]
    for record in records:
        record["cost"] = None
    for record in records[3:6]:  # coincides with the first
        record["curve"] = records[record["seed"]]["curve"]
    (tmp_path / "failures.txt").write_text(f"{EVIL}\n")
    write_runs(tmp_path, [{**record, "agent": record["agent"].replace(EVIL, "evil")} for record in records])
    write_report([tmp_path], tmp_path / "report.html")
    for width in (700, 1200):
        page.open(tmp_path / "report.html", width)
        page.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        assert page.run("document.documentElement.scrollWidth <= innerWidth")

    def texts(selector):
        return page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((part) => part.textContent)")

    # Text of users is text.
    assert page.run("window.evil") is None and EVIL in texts("#summary tbody th")[2]
    assert any(EVIL in text for text in texts(".options li")) and EVIL in texts("#unfinished li")
    assert page.run("document.querySelectorAll('main script, main b b, main i, main u').length") == 0
    assert "<u>" in texts(".warning p")[0] and "<i>margin</i>" in texts("#summary thead th")[-1]

    # An agent is switched off and on.
    curves = "document.getElementById('curves-plot').data.filter((trace) => trace.mode === 'lines+markers')"
    button = "document.querySelectorAll('#curves .legend button')[1]"
    assert page.run(f"{curves}.length") == 3
    dashes = page.run(f"{curves}.map((trace) => trace.line.dash)")
    assert len(set(dashes)) == 3 and dashes[2] == "solid"  # those that coincide take turns
    page.run(f"{button}.click()")
    assert page.run(f"{curves}.map((trace) => trace.name)")[0] == "wpl" and page.run(f"{curves}.length") == 2
    assert page.run("document.getElementById('cost-plot').data.length") == 2
    assert page.run(f"{button}.getAttribute('aria-pressed')") == "false"
    page.run(f"{button}.click()")
    assert page.run(f"{curves}.length") == 3

    # Another metric is chosen: one that a user has registered.
    choose = (
        "(() => {{ const made = document.querySelector('{0}'); made.value = '{1}';"
        "made.dispatchEvent(new Event('{2}')); }})()"
    )
    assert "<i>margin</i>" in texts("#curves option")
    page.run(choose.format("#curves select", "margin", "change"))
    assert page.run(f"[...{curves}[0].y]") == [1, 2, 3, 4, 5]
    page.point("#curves-plot .nsewdrag")
    said = "".join(texts("#curves-plot .hoverlayer text"))
    assert "wpl: 3.0" in said and "</script><script>window.evil" in said

    # The slider moves through the epochs.
    final = texts("#maps svg")
    assert "in the end (test split)" in texts("#maps output")
    page.run(choose.format("#epoch", "1", "input"))
    assert texts("#maps output") == ["after epoch 2 (validation split)"] and texts("#maps svg") != final
    assert "epoch 2" in texts("#maps figcaption")[0]
    page.run(choose.format("#by", "label", "change"))
    assert page.run("document.getElementById('epoch').disabled") and "label" in texts("#maps svg")[0]
    page.point("#maps svg [data-tip]")
    assert re.search(r"^label 0, layer 1\nblock \d+: \d+ %", texts("#tip")[0])

    # Differences: a cell tells its interval; another reference.
    page.point("#differences .matrix td[data-tip]")
    assert "wpl − shared" in texts("#tip")[0] and "3 common seeds" in texts("#tip")[0]
    page.run(choose.format("#differences h3 + .controls select", "1", "change"))
    assert [row.startswith("shared") for row in texts("#against tbody tr")] == [False, False]
    assert page.run("matchMedia('(prefers-color-scheme: dark)').matches") is False
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(22, 25, 28)"
    ink = "document.getElementById('curves-plot').layout.font.color"
    assert page.run(f"new Promise((then) => setTimeout(() => then({ink}), 100))") == "#e4e7ea"


@needs_chromium
@pytest.mark.long
def test_pages_with_little_on_them(page, tmp_path):
    write_runs(tmp_path / "one", [made_up_run("wpl", 0, epochs=1)], with_routes=False)
    write_runs(tmp_path / "apart", [made_up_run("wpl", 0), made_up_run("shared", 1)])
    (tmp_path / "none" / "wpl" / "seed-0").mkdir(parents=True)
    (tmp_path / "none" / "wpl" / "seed-0" / "config.toml").write_text("epochs = 7")
    for name in ("one", "apart", "none"):
        write_report([tmp_path / name], tmp_path / f"{name}.html")
    text = "document.querySelector('main').textContent"
    page.open(tmp_path / "one.html")
    assert "final routes only" in page.run(text) and "Paired" not in page.run(text)
    page.open(tmp_path / "apart.html")
    assert "0 common seeds: nothing to compare" in page.run(text)
    page.open(tmp_path / "none.html")
    assert "0 of 7" in page.run(text) and "Learning curves" not in page.run(text)
