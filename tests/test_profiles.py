"""The profiles, against the options that Snakemake and its plugins know."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from snakemake import cli as snakemake_cli

from pipeline import cluster

ROOT = Path(__file__).parents[1]
PROFILES = sorted(path.parent for path in (ROOT / "workflow" / "profiles").glob("*/profile.yaml"))
RULES = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))


def settings(profile: Path) -> dict[str, object]:
    return dict(yaml.safe_load((profile / "profile.yaml").read_text()))


def require_plugin(profile: Path) -> None:
    executor = str(settings(profile).get("executor", "local"))
    if (
        executor != "local"
        and importlib.util.find_spec(f"snakemake_executor_plugin_{executor.replace('-', '_')}") is None
    ):
        pytest.skip(f"snakemake-executor-plugin-{executor} is not installed (pip install -r requirements.lock)")


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.name)
def test_snakemake_and_the_plugin_know_every_option_of_a_profile(profile: Path) -> None:
    require_plugin(profile)
    _, parsed = snakemake_cli.parse_args(["--workflow-profile", str(profile)])
    assert parsed.executor == settings(profile).get("executor")
    assert parsed.scheduler == settings(profile)["scheduler"]


@pytest.mark.parametrize("name", ["kubernetes", "aws-batch"])
def test_the_room_that_a_job_asks_for_does_not_grow_with_its_input(name: str) -> None:
    """Snakemake would take twice the input: no node has that for the training of a large cohort."""
    profile = ROOT / "workflow" / "profiles" / name
    require_plugin(profile)
    _, parsed = snakemake_cli.parse_args(["--workflow-profile", str(profile)])
    assert f"disk_mb={cluster.TEMPORARY_MB}" in parsed.default_resources.args


def test_an_option_that_nobody_knows_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "profile.yaml").write_text("executor: local\nno-such-option: 1\n")
    with pytest.raises(SystemExit):
        snakemake_cli.parse_args(["--workflow-profile", str(tmp_path)])


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.name)
def test_the_groups_of_a_profile_are_of_rules_that_exist(profile: Path) -> None:
    groups = settings(profile).get("groups", {})
    assert isinstance(groups, dict)
    for rule, group in groups.items():
        assert f"rule {rule}:" in RULES
        assert group in settings(profile)["group-components"]  # type: ignore[operator]


def test_profiles_with_a_command_for_jobs_differ_in_the_command_only() -> None:
    kubernetes, batch = (settings(ROOT / "workflow" / "profiles" / name) for name in ("kubernetes", "aws-batch"))
    differing = {name for name in kubernetes if kubernetes[name] != batch.get(name)}
    assert differing == {"cluster-generic-submit-cmd", "cluster-generic-status-cmd"}
    assert set(kubernetes) == set(batch)


def test_a_pods_start_does_not_walk_the_whole_volume() -> None:
    job = [
        *yaml.safe_load_all((ROOT / "workflow" / "profiles" / "kubernetes" / "run.yaml").read_text(encoding="utf-8"))
    ][-1]
    given = job["spec"]["template"]["spec"]["securityContext"]
    assert given["fsGroupChangePolicy"] == "OnRootMismatch"


def test_the_page_on_clusters_names_the_rules_that_are_no_jobs() -> None:
    found = re.search(r"localrules:\n((?: +\w+,\n)+)", (ROOT / "workflow" / "Snakefile").read_text(encoding="utf-8"))
    assert found is not None
    rules = found[1].replace(",", "").split()
    words = f"{', '.join(f'`{rule}`' for rule in rules[:-1])} and `{rules[-1]}`"
    assert f"run {words}; the rest are jobs" in (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
