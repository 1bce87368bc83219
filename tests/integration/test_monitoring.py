"""What `deploy/` gives to Prometheus and Grafana asks only for what a server's `/metrics` has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from scp_server import Server, callback

RequirePeer = Callable[[str, object], None]

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"
ADDED_BY_PROMETHEUS = {"instance", "job"}
SELECTOR = re.compile(r"\b(scp_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|!=|!~|=)"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|without|on|ignoring) \(([^)]*)\)")
GRAFANA_VARIABLES = {"$__rate_interval": "5m", "$instance": ".+"}

Scraped = Mapping[str, list[Mapping[str, str]]]
"""The labels of every series, by name."""


def _problems(query: str, scraped: Scraped) -> list[str]:
    """What a query asks for that a scrape does not have: names, labels, and values of labels."""
    problems, known = [], set(ADDED_BY_PROMETHEUS)
    for name, matchers in SELECTOR.findall(query):
        series = scraped.get(name)
        if series is None:
            problems.append(f"no metric {name}")
            continue
        known |= {label for labels in series for label in labels}
        found = MATCHER.findall(matchers)
        if len(found) != (matchers.count('"') // 2):
            problems.append(f"cannot read {matchers}")
        for label, operator, value in found:
            if label in ADDED_BY_PROMETHEUS:
                continue
            values = {labels.get(label) for labels in series}
            if values == {None}:
                problems.append(f"{name} has no label {label}")
            elif operator in ("=", "!=") and value not in values:
                problems.append(f"{name} has no {label} {value}")
    for group in GROUPING.findall(query):
        for label in re.split(r",\s*", group):
            if label not in known:
                problems.append(f"nothing has a label {label}")
    return problems


@pytest.fixture
async def scraped(start_server: Callable[..., Awaitable[Server]]) -> Scraped:
    """The series of a real server, with callbacks of its user's, one of which is a subscription."""

    @callback("accepted")
    async def anything(association: Any) -> None: ...

    @callback("stored")
    async def everything(instance: Any) -> None: ...

    server = await start_server(callbacks=[anything, everything])
    body, _ = await server._sight.scrape()
    series: dict[str, list[Mapping[str, str]]] = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            series.setdefault(sample.name, []).append(sample.labels)
    return series


def _rules() -> list[str]:
    """The expressions of the alert rules, each on one line of the file."""
    text = (PROMETHEUS / "rules.yml").read_text(encoding="utf-8")
    expressions = re.findall(r"^ +expr: (.+)$", text, re.MULTILINE)
    assert len(expressions) == len(_alerts(text)) > 0
    return expressions


def _alerts(text: str) -> list[str]:
    return re.findall(r"^ +- alert: (\w+)$", text, re.MULTILINE)


def _panels() -> Iterator[dict[str, Any]]:
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        if panel["type"] != "row":
            yield panel


def _dashboard_queries() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in _panels() for target in panel["targets"]]
    queries += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    return queries


def test_a_query_for_what_is_not_there_is_found_out() -> None:
    scraped: Scraped = {"scp_a_total": [{"reason": "x"}], "scp_b": [{}]}
    assert _problems('sum by (reason, job) (rate(scp_a_total{reason="x", instance="a"}[5m]))', scraped) == []
    for query in (
        "scp_c",
        "scp_b + scp_bb",
        'scp_a_total{why="x"}',
        'scp_a_total{reason="y"}',
        'scp_a_total{reason!="y"}',
        'scp_b{reason="x"}',
        "sum by (why) (scp_a_total)",
        "sum by (reason) (scp_b)",
    ):
        assert len(_problems(query, scraped)) == 1, query


async def test_every_alert_asks_for_what_the_server_has(scraped: Scraped) -> None:
    assert {rule: problems for rule in _rules() if (problems := _problems(rule, scraped))} == {}


async def test_every_query_of_the_dashboard_asks_for_what_the_server_has(scraped: Scraped) -> None:
    queries = _dashboard_queries()
    assert len(queries) > 20
    assert {query: problems for query in queries if (problems := _problems(query, scraped))} == {}
    variables = json.loads(DASHBOARD.read_text(encoding="utf-8"))["templating"]["list"]
    (instance,) = [variable for variable in variables if variable["name"] == "instance"]
    asked = re.fullmatch(r"label_values\((\w+), instance\)", instance["query"]["query"])
    assert asked is not None
    assert asked[1] in scraped


async def test_every_legend_of_the_dashboard_names_a_label_of_its_query(scraped: Scraped) -> None:
    for panel in _panels():
        for target in panel["targets"]:
            query = target["expr"]
            kept = {label for group in GROUPING.findall(query) for label in re.split(r",\s*", group)}
            if not re.match(r"(sum|min|max|histogram_quantile)\b", query):
                names = [name for name, _ in SELECTOR.findall(query)]
                kept = {label for name in names for labels in scraped[name] for label in labels}
                kept |= ADDED_BY_PROMETHEUS
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept, panel["title"]


def test_panels_have_an_id_of_their_own_and_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_alert_is_tried_to_fire_and_not_to_fire_and_is_explained() -> None:
    alerts = _alerts((PROMETHEUS / "rules.yml").read_text(encoding="utf-8"))
    tried = (PROMETHEUS / "rules_test.yml").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    for alert in alerts:
        assert re.search(rf"alertname: {alert}\n +exp_alerts:\n", tried), alert
        assert re.search(rf"alertname: {alert}\n +exp_alerts: \[\]\n", tried), alert
        assert f"| {alert} |" in page
    assert set(re.findall(r"^\| (ScpServer\w+) \|", page, re.MULTILINE)) == set(alerts)


@pytest.fixture
def promtool(require_peer: RequirePeer) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run promtool in the folder of the rules."""
    found = shutil.which("promtool")
    require_peer("promtool", found)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [found or "", *arguments]
        return subprocess.run(
            command, cwd=PROMETHEUS, capture_output=True, text=True, timeout=60, check=False
        )

    return run


@pytest.mark.interop
def test_promtool_accepts_the_rules(promtool: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    checked = promtool("check", "rules", "--lint-fatal", "rules.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.interop
def test_every_alert_fires_when_it_should_and_only_then(
    promtool: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    tried = promtool("test", "rules", "rules_test.yml")
    assert tried.returncode == 0, tried.stdout + tried.stderr


@pytest.mark.interop
def test_promtool_can_read_every_query_of_the_dashboard(
    promtool: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    rules = []
    for number, query in enumerate(_dashboard_queries()):
        expression = query
        for variable, value in GRAFANA_VARIABLES.items():
            expression = expression.replace(variable, value)
        assert "$" not in expression, query
        rules.append({"record": f"query:{number}", "expr": expression})
    written = tmp_path / "dashboard.yml"
    written.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    checked = promtool("check", "rules", str(written))
    assert checked.returncode == 0, checked.stdout + checked.stderr
