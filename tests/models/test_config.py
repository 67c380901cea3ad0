"""Configs of any family: nested tuples, optional fields and plain dicts go to JSON and back."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from strucfast.models.config import AEConfig, from_dict, set_number, to_dict


@dataclass(frozen=True)
class FamilyConfig(AEConfig):
    groups: tuple[tuple[int, ...], ...] = ()
    scales: tuple[float, ...] = (1.0,)
    dataset_size: int | None = None
    learn: bool = False
    weight: float = 1.0
    stage: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "weight", above=0.0)


def test_round_trip_through_json():
    config = FamilyConfig(
        groups=((0, 1), (2,)), dataset_size=7, learn=True, weight=2, stage={"name": "vae", "config": {"hidden": (4, 4)}}
    )
    values = json.loads(json.dumps(to_dict(config)))
    assert values["groups"] == [[0, 1], [2]] and values["stage"] == {"name": "vae", "config": {"hidden": [4, 4]}}
    loaded = from_dict(FamilyConfig, values)
    assert loaded.groups == ((0, 1), (2,)) and loaded.scales == (1.0,) and loaded.dataset_size == 7
    assert to_dict(loaded) == to_dict(config) and loaded.weight == 2.0 and isinstance(loaded.weight, float)
    assert from_dict(FamilyConfig, to_dict(FamilyConfig())) == FamilyConfig()
    # A config does not share its dicts with the caller.
    values["stage"]["config"]["hidden"].append(1)
    assert loaded.stage["config"]["hidden"] == [4, 4]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"groups": [0, 1]}, TypeError, r"groups\[0\] must be a list of ints, got 0"),
        ({"groups": 3}, TypeError, "groups must be a list of lists of ints, got 3"),
        ({"groups": [[0, "1"]]}, TypeError, r"groups\[0\]\[1\] must be int, got '1'"),
        ({"dataset_size": 1.5}, TypeError, "dataset_size must be int, got 1.5"),
        ({"learn": 1}, TypeError, "learn must be bool, got 1"),
        ({"stage": [1]}, TypeError, "stage must be a mapping, got"),
        ({"weight": None}, TypeError, "weight must be float, got None"),
        ({"weight": 0}, ValueError, "weight must be finite and > 0, got 0"),
        ({"weight": float("nan")}, ValueError, "weight must be finite and > 0, got nan"),
    ],
)
def test_bad_values(values, error, message):
    with pytest.raises(error, match=message):
        from_dict(FamilyConfig, values)
