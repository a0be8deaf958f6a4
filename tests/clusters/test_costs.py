"""The highest cost of a cluster. Every machine of the shipped files has a price."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tune_rescon.clusters import max_hourly_cost, read_cluster_file
from tune_rescon.clusters.check import PRICES

AWS = """
provider: {type: aws}
head_node_type: head
max_workers: 4
available_node_types:
  head: {node_config: {InstanceType: m7i.large}}
  small: {max_workers: 8, node_config: {InstanceType: g5.2xlarge}}
  large: {max_workers: 1, node_config: {InstanceType: p5.48xlarge}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cluster.yaml"


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster/gcp.yaml"])
def test_every_machine_of_a_shipped_file_has_a_price(name: str) -> None:
    cluster = read_cluster_file(ROOT / name)
    assert len(cluster.node_types) >= 2
    assert {one.machine for one in cluster.node_types} <= set(PRICES[cluster.provider])
    assert sum(one.is_head for one in cluster.node_types) == 1
    assert "Not counted" not in str(max_hourly_cost(cluster))


def test_highest_cost_takes_the_dearest_machines_within_max_workers(file: Path) -> None:
    file.write_text(AWS)
    message = max_hourly_cost(read_cluster_file(file))
    # 0.1008 + 55.04 + 3 x 1.212
    assert message is not None
    assert message.startswith(
        "At most 58.78 US dollars an hour for machines (1 x m7i.large 0.10, 1 x p5.48xlarge 55.04,"
        " 3 x g5.2xlarge 3.64; approximate on-demand prices of "
    )


def test_a_node_type_without_max_workers_gets_the_clusters_limit(file: Path) -> None:
    file.write_text(AWS.replace("max_workers: 1, ", ""))
    assert "4 x p5.48xlarge 220.16;" in str(max_hourly_cost(read_cluster_file(file)))


def test_a_machine_without_a_known_price_is_named(file: Path) -> None:
    file.write_text(AWS.replace("p5.48xlarge", "p9.metal"))
    message = str(max_hourly_cost(read_cluster_file(file)))
    assert "4 x g5.2xlarge 4.85" in message
    assert message.endswith("Not counted, because no price is known here: 1 x p9.metal.")


def test_workers_of_the_heads_type_count(file: Path) -> None:
    """Ray starts none of them without `max_workers`, and takes them as workers with it."""
    file.write_text(AWS.replace("small: {max_workers: 8", "small: {max_workers: 1"))
    # 0.1008 + 55.04 + 1.212
    assert str(max_hourly_cost(read_cluster_file(file))).startswith("At most 56.35 US dollars an hour")
    text = file.read_text()
    file.write_text(
        text.replace(
            "head: {node_config: {InstanceType: m7i", "head: {max_workers: 9, node_config: {InstanceType: m7i"
        )
    )
    # two more machines of 0.1008
    assert str(max_hourly_cost(read_cluster_file(file))).startswith("At most 56.55 US dollars an hour")


def test_a_region_of_other_prices_is_named(file: Path) -> None:
    file.write_text(AWS)
    assert "prices of September 2026 in us-west-2; spot" in str(max_hourly_cost(read_cluster_file(file)))
    for region, is_named in (("us-west-2", False), ("sa-east-1", True)):
        file.write_text(AWS.replace("type: aws", f"type: aws, region: {region}"))
        message = str(max_hourly_cost(read_cluster_file(file)))
        assert message.endswith(" The prices of sa-east-1 may be higher.") == is_named


def test_on_premises_machines_have_no_price() -> None:
    assert max_hourly_cost(read_cluster_file(ROOT / "cluster/local.yaml")) is None
