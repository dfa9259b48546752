"""Settings from a YAML file: the same as from JSON, with YAML 1.2's plain values."""

import json
import sys
from pathlib import Path

import pytest

from ade_fast.training.config import Config, ConfigError, read_config


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def needs_yaml() -> None:
    pytest.importorskip("yaml")


def test_values_are_those_of_json(tmp_path):
    lines = ("data: cos  # a curve", "potential_lr: 3e-3", "tensorboard: off", "hidden: [32, 32]", "base_std: null")
    values = read_config(written(tmp_path, "\n".join((*lines, "calibrate: false"))))
    as_json = tmp_path / "settings.json"
    as_json.write_text(json.dumps(values))
    expected = dict(data="cos", potential_lr=3e-3, tensorboard="off", hidden=[32, 32], base_std=None, calibrate=False)
    assert values == read_config(as_json) == expected
    assert Config.from_dict(values).hidden == (32, 32)


def test_every_default_comes_back(tmp_path):
    import yaml

    assert read_config(written(tmp_path, yaml.safe_dump(Config().to_dict()))) == Config().to_dict()


@pytest.mark.parametrize(
    ("number", "value"),
    [("1e-3", 1e-3), ("1.5e+3", 1500.0), (".5", 0.5), ("-2", -2), ("010", 10), ("1_0", "1_0"), ("1:30", "1:30")],
)
def test_numbers(tmp_path, number, value):
    found = read_config(written(tmp_path, f"x: {number}\n"))["x"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nseed: 2\n", "is not valid YAML: it has the key 'seed' twice"),
        ("seed: [1\n", "is not valid YAML: "),
        ("x: !!python/object/apply:os.getcwd []\n", "is not valid YAML: could not determine a constructor"),
        ("- 1\n", "must hold keys and their values, got a list"),
        ("", "must hold keys and their values, got a NoneType"),
    ],
)
def test_what_is_not_a_configuration_is_refused(tmp_path, text, said):
    with pytest.raises(ConfigError, match=r"configuration: .*settings\.yaml ") as error:
        read_config(written(tmp_path, text))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_missing_pyyaml_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigError, match=r"PyYAML is not installed: pip install 'ade_fast\[yaml\]', or write JSON"):
        read_config(written(tmp_path, "seed: 1\n"))
