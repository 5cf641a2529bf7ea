"""The dashboard, the alerts and the scrape configuration: of metrics that there are, and whole enough to be loaded."""

from __future__ import annotations

import inspect
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME
from ray.dashboard.consts import NODE_TAG_KEYS
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES, ReporterAgent

from raytrain.cluster.metrics import METRICS
from tests.runbook import sections

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "infra" / "prometheus"
DASHBOARD: dict[str, Any] = json.loads((ROOT / "infra" / "grafana" / "raytrain.json").read_text())
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
OF_RAYTRAIN = {name for each in METRICS.values() for name in each.exported_names()}
OF_RAY = {f"ray_{name}" for name in METRICS_GAUGES} | {
    "ray_memory_manager_worker_eviction_total",  # of the raylet, in C++; Ray's own dashboard has it
}
OF_TARGETS = {"ray_io_cluster"}
"""Labels that a scrape configuration gives; they look like metrics."""
GRID_COLUMNS = 24


def panels() -> list[dict[str, Any]]:
    return [each for each in DASHBOARD["panels"] if each["type"] != "row"]


def expressions() -> Iterator[str]:
    yield from (target["expr"] for panel in panels() for target in panel["targets"])
    yield from (rule["expr"] for rule in RULES)
    yield from (each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query")


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\bray_[a-z0-9_]+", expression)) - OF_TARGETS


def test_every_metric_of_the_dashboard_and_the_alerts_is_exported() -> None:
    for expression in expressions():
        assert names_in(expression) <= OF_RAYTRAIN | OF_RAY, expression


def test_every_metric_of_raytrain_is_in_a_panel_or_an_alert() -> None:
    used = set().union(*map(names_in, expressions()))
    idle = [each.name for each in METRICS.values() if not used & set(each.exported_names())]
    assert idle == []


def test_labels_that_are_asked_for_are_tags_of_their_metrics() -> None:
    """A label of raytrain's that a metric does not have makes an empty panel, and an alert that never fires."""
    tags = {name: {*each.tags, "le"} for each in METRICS.values() for name in each.exported_names()}
    of_ours = {tag for each in METRICS.values() for tag in each.tags}
    for expression in expressions():
        for name, labels in re.findall(r"\b(ray_raytrain_[a-z0-9_]+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)\s*(?:=|!)", labels)) <= tags[name], expression
        grouped = {each.strip() for by in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for each in by.split(",")}
        named = [name for name in names_in(expression) if name in tags]
        if named:
            assert grouped & of_ours <= set().union(*(tags[name] for name in named)), expression


def test_every_alert_says_how_bad_it_is_and_has_its_section_in_the_runbook() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))
    for rule in RULES:
        severities = ("heartbeat",) if rule["alert"] == "Heartbeat" else ("page", "ticket")
        assert rule["labels"]["severity"] in severities, rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]
        file, _, section = rule["annotations"]["runbook"].partition("#")
        assert file == "infra/runbook.md"
        assert section in sections(), f"{rule['alert']}: no section {section}"


def test_every_alert_was_seen_to_fire() -> None:
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    fired = {each["alertname"] for test in tests for each in test["alert_rule_test"] if each["exp_alerts"]}
    assert {rule["alert"] for rule in RULES} == fired


def test_runs_are_told_apart_by_experiment_too() -> None:
    """Two experiments have runs of the same names."""
    for expression in expressions():
        for grouped in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
            labels = {each.strip() for each in grouped.split(",")}
            assert "" not in labels, f"what any experiment does counts for all: {expression}"
            assert "run" not in labels or "experiment" in labels, expression


def test_numbers_of_the_moment_are_shown_of_runs_that_train_alone() -> None:
    """A process goes on after its part of a run or a trial; the last of such a number is nobody's rate any more."""
    of_the_moment = ("images_per_s", "data_wait_fraction", "left_seconds")
    found = [each for each in expressions() if re.search(f"ray_raytrain_({'|'.join(of_the_moment)})", each)]
    assert len(found) == len(of_the_moment) + 1  # a panel each, and an alert
    assert [each for each in found if "and ray_raytrain_ranks > 0)" not in each] == []


def test_rare_events_are_told_by_each_series_of_its_own() -> None:
    """A difference of sums takes what a node that left had counted from what another counts now."""
    assert [rule["alert"] for rule in RULES if re.search(r"- \(?sum", rule["expr"])] == []


def test_the_head_is_known_by_a_label_that_ray_gives() -> None:
    (rule,) = (rule for rule in RULES if rule["alert"] == "HeadIsGone")
    assert "ray_node_mem_total" in names_in(rule["expr"])
    ((label, value),) = re.findall(r'ray_node_mem_total\{(\w+)="(\w+)"\}', rule["expr"])
    assert label in NODE_TAG_KEYS
    assert f'{label}": ray_node_type' in inspect.getsource(ReporterAgent)
    assert f'ray_node_type = "{value}" if self._is_head_node' in inspect.getsource(ReporterAgent)


def scraped(name: str) -> dict[str, Any]:
    (job,) = yaml.safe_load((PROMETHEUS / name).read_text())["scrape_configs"]
    found: dict[str, Any] = job
    return found


def test_nodes_are_found_by_what_ray_tags_them_with() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    (found,) = scraped("prometheus.yml")["ec2_sd_configs"]
    assert found["region"] == cluster["provider"]["region"]
    filters = {each["name"]: each["values"] for each in found["filters"]}
    assert filters[f"tag:{TAG_RAY_CLUSTER_NAME}"] == [cluster["cluster_name"]]
    starts = [each for name in ("head", "worker") for each in cluster[f"{name}_start_ray_commands"]]
    assert all(f"--metrics-export-port={found['port']}" in each for each in starts if "ray start" in each)
    (rule,) = scraped("prometheus.yml")["relabel_configs"]
    assert rule["source_labels"] == [f"__meta_ec2_tag_{TAG_RAY_CLUSTER_NAME.replace('-', '_')}"]
    assert {rule["target_label"]} == OF_TARGETS


@pytest.mark.parametrize("cluster", ["cluster.yaml", "infra/cluster-local.yaml"])
def test_on_the_head_nodes_are_found_in_the_file_that_ray_writes(cluster: str) -> None:
    options = yaml.safe_load((ROOT / cluster).read_text())["docker"]["run_options"]
    (folder,) = (each.split()[1].removesuffix(":/tmp/ray") for each in options if each.endswith(":/tmp/ray"))
    (found,) = scraped("on-head.yml")["file_sd_configs"]
    assert found["files"] == [f"{folder}/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]


@pytest.mark.parametrize("name", ["prometheus.yml", "on-head.yml"])
def test_labels_that_are_dropped_are_not_what_tells_series_apart(name: str) -> None:
    (rule,) = scraped(name)["metric_relabel_configs"]
    kept = {tag for each in METRICS.values() for tag in each.tags} | {
        "WorkerId",
        "NodeAddress",
        "ip",
        "le",
        "RayNodeType",
    }
    assert not [label for label in kept if re.fullmatch(rule["regex"], label)]


def test_the_dashboard_has_what_grafana_needs_to_load_it() -> None:
    assert DASHBOARD["uid"] == "raytrain"
    assert "id" not in DASHBOARD  # Grafana gives one
    assert isinstance(DASHBOARD["schemaVersion"], int)
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    sources = [each["name"] for each in DASHBOARD["templating"]["list"] if each["type"] == "datasource"]
    assert sources == ["datasource"]
    wanted = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels():
        assert panel["title"]
        assert panel["datasource"] == wanted
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(refs) == len(set(refs))
        assert all(target["datasource"] == wanted for target in panel["targets"])


def test_no_panel_lies_over_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= GRID_COLUMNS
        cells = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert not cells & taken, panel["title"]
        taken |= cells


def test_variables_that_panels_name_are_there() -> None:
    known = {each["name"] for each in DASHBOARD["templating"]["list"]}
    for panel in panels():
        for target in panel["targets"]:
            assert set(re.findall(r"\$\{?(\w+)", target["expr"])) <= known


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool: it comes with Prometheus (apt-get install prometheus)")
    return found


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_configuration_and_the_rules(promtool: str) -> None:
    for name in ("prometheus.yml", "on-head.yml"):
        run(promtool, "check", "config", PROMETHEUS / name)


def test_alerts_fire_on_made_series_and_not_on_what_looks_like_it(promtool: str) -> None:
    run(promtool, "test", "rules", PROMETHEUS / "alerts_test.yml")


def test_every_expression_of_the_dashboard_is_promql(promtool: str, tmp_path: Path) -> None:
    found = [
        target["expr"].replace("$experiment", ".*").replace("$run", ".*").replace("$destination", ".*")
        for p in panels()
        for target in p["targets"]
    ]
    rules = [{"record": f"a:{i}", "expr": each} for i, each in enumerate(found)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    run(promtool, "check", "rules", tmp_path / "rules.yml")
