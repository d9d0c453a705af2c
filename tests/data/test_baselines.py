import json

import pytest

from maxlm.config.errors import UserError
from maxlm.data.baselines import read_baselines


def test_baselines_are_read_back(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"baselines": {"uniform": 3.5, "gzip -9": 2}}))
    assert read_baselines(tmp_path) == {"uniform": 3.5, "gzip -9": 2.0}


def test_none_where_none_were_measured(tmp_path):
    assert read_baselines(tmp_path) == {}
    (tmp_path / "manifest.json").write_text("{}")
    assert read_baselines(tmp_path) == {}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"baselines": [1]}', '{"baselines": {"a": "x"}}', '{"baselines": {"a": null}}']
)
def test_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json.*maxlm prepare"):
        read_baselines(tmp_path)
