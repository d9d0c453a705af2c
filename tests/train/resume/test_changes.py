"""What a resume refuses, warns of and takes: every rule of the table, by what brings it about."""

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from maxlm.config.errors import UserError
from maxlm.config.schema import RunConfig
from maxlm.data.shards import ShardWriter, TokenShards
from maxlm.train.resume.changes import check_resume, loss_may_change
from maxlm.train.resume.rules import RULES, Level, rules_table
from tests.train.resume.conftest import ROWS, STEP

ROOT = Path(__file__).parents[3]


def other_settings(saved, **sections):
    settings = json.loads(json.dumps(saved.settings))
    for section, values in sections.items():
        settings[section] = settings.get(section, {}) | values
    return saved._replace(config=RunConfig.model_validate(settings), settings=settings)


def rewrite(folder, *, keep_index):
    """Replace the shards of a split by as many tokens of other text, each page with its checksum."""
    index = TokenShards(folder).index
    tokens = TokenShards(folder).read(0, index.tokens)
    kept = (folder / "index.json").read_bytes()
    inside = tokens > max(index.bos_id, index.eos_id)
    tokens[inside] = np.random.default_rng(0).permutation(tokens[inside])
    documents = np.split(tokens, np.flatnonzero(tokens == index.bos_id)[1:])
    (folder / "index.json").unlink()
    about = {name: getattr(index, name) for name in ("vocab_size", "bos_id", "eos_id", "tokenizer")}
    with ShardWriter(folder, **about) as writer:
        for document in documents:
            writer.write_document(document[1:-1])
    assert [one.file for one in TokenShards(folder).index.shards] == [
        one.file for one in index.shards
    ]
    if keep_index:
        (folder / "index.json").write_bytes(kept)


def text_of(split, *, keep_index):
    def change(saved):
        folder = Path(saved.config.data.sources["text"].path) / split
        rewrite(folder, keep_index=keep_index)
        return saved

    return change


def without(*names):
    def change(saved):
        for name in names:
            path = Path(saved.config.data.sources["text"].path) / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return saved

    return change


def manifest(saved):
    path = Path(saved.config.data.sources["text"].path) / "manifest.json"
    path.write_text(path.read_text().replace("{", '{"made": "again",', 1))
    return saved


def recorded(**values):
    """Change the record, as if it had been saved in other circumstances."""

    def change(saved):
        record = dict(saved.record)
        for name, value in values.items():
            record[name] = record[name] | value if isinstance(value, dict) else value
        return saved._replace(record=record)

    return change


def no_held_out(saved):
    return recorded(text={})(
        saved._replace(
            record=saved.record | {"text": {"train/text": saved.record["text"]["train/text"]}}
        )
    )


def settings(**sections):
    return lambda saved: other_settings(saved, **sections)


def stages(saved):
    """Rows that were read were half of another source."""
    return recorded(mixture=[[0, {"text": 1, "web": 1}]])(saved)


SCHEDULE = {"kind": "wsd", "warmup_steps": 2, "cooldown_steps": 2}
CHANGES = {
    "settings": (settings(train={"batch_size": 8}), "train.batch_size: 4 -> 8"),
    "read": (stages, "the mixture of rows that were read"),
    "to_come": (
        settings(data={"mix": {"max_epochs": 90.0}}),
        "rows to come: data.mix.max_epochs: (none) -> 90.0",
    ),
    "tokens": (text_of("train", keep_index=False), "data.sources (the tokens)"),
    "pages": (text_of("train", keep_index=True), "files of train hold other text"),
    "order": (recorded(order="0" * 64), "the order of rows that were read"),
    "held_out": (text_of("validation", keep_index=False), "data.sources.text (its held-out text)"),
    "held_out_gone": (without("validation"), "its held-out text is not there any more"),
    "held_out_new": (no_held_out, "it has held-out text now"),
    "manifest_gone": (without("manifest.json"), "its manifest.json is not there any more"),
    "manifest": (manifest, "data.sources.text (its manifest.json)"),
    "tokenizer": (recorded(tokenizer="0" * 64), "data.tokenizer (its contents): 000000000000 ->"),
    "compute_dtype": (
        recorded(compute_dtype="bfloat16"),
        "the compute dtype: bfloat16 -> float32 (train.compute_dtype=auto)",
    ),
    "platform": (recorded(devices={"platform": "tpu", "kind": "TPU v6e"}), "platform: tpu -> cpu"),
    "device_kind": (recorded(devices={"kind": "TPU v6e"}), "kind of device: TPU v6e -> cpu"),
    "device_count": (recorded(devices={"count": 64}), "devices: 64 -> 1"),
    "code": (recorded(versions={"code of maxlm": "0" * 12}), "code of maxlm: 000000000000 -> "),
    "compilers": (recorded(versions={"jax": "0.4.1"}), "jax: 0.4.1 -> "),
    "libraries": (recorded(versions={"grain": "0.1"}), "grain: 0.1 -> "),
}
UNTESTED_HERE = {"rates"}  # by tests/train/test_runs.py, with a run


def test_every_rule_is_brought_about():
    assert CHANGES.keys() | UNTESTED_HERE == RULES.keys()


def test_what_has_not_changed_is_taken_without_a_word(saved, caplog):
    caplog.set_level(logging.INFO)
    assert check_resume(saved.record, saved.config, saved.now()) == []
    assert check_resume(None, saved.config, saved.now()) == []
    assert not [one for one in caplog.records if "resume" in one.name]


@pytest.mark.parametrize("rule", CHANGES)
def test_each_difference_has_its_class(saved, caplog, rule):
    caplog.set_level(logging.INFO)
    change, expected = CHANGES[rule]
    changed = change(saved)
    now, record, level = changed.now(), changed.record, RULES[rule].level
    if level is Level.REFUSE:
        with pytest.raises(UserError) as refused:
            check_resume(record, changed.config, now)
        assert expected in str(refused.value)
        assert f"holds a run at step {STEP}" in str(refused.value)
        assert "checkpoint.allow_config_change=true" in str(refused.value)
        changed = other_settings(changed, checkpoint={"allow_config_change": True})
    found = check_resume(record, changed.config, now)
    assert [one.rule for one in found] == [rule]
    assert expected in found[0].text
    assert expected in caplog.text
    loud = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert bool(loud) == (level is not Level.FINE)
    if loud:
        kind = "resume_overridden" if level is Level.REFUSE else "resume_warning"
        assert loud[0].maxlm_event.kind == kind
        assert expected in loud[0].maxlm_event.values["differences"][0]
    assert loss_may_change(found) == (level is Level.REFUSE or rule == "to_come")


def test_all_that_is_refused_is_said_at_once(saved):
    rewrite(Path(saved.config.data.sources["text"].path) / "validation", keep_index=True)
    record = saved.record | {"tokenizer": "0" * 64, "compute_dtype": "bfloat16"}
    with pytest.raises(UserError) as refused:
        check_resume(record, other_settings(saved, train={"batch_size": 8}).config, saved.now())
    for expected in (
        *("train.batch_size", "files of validation hold other text", "data.tokenizer"),
        "train.compute_dtype=bfloat16 goes on as before",
    ):
        assert expected in str(refused.value)


def test_a_dtype_may_be_spelt_out(saved):
    """The way out that the message names must be one."""
    spelt = other_settings(saved, train={"compute_dtype": "float32"})
    assert check_resume(saved.record, spelt.config, saved.now()) == []
    other = other_settings(saved, train={"compute_dtype": "bfloat16"})
    with pytest.raises(UserError, match="the compute dtype: float32 -> bfloat16"):
        check_resume(saved.record, other.config, other.now())


ADDED = ["text", "pages", "order", "manifests", "compute_dtype", "devices", "versions", "mixture"]


@pytest.mark.parametrize("missing", [*([name] for name in [*ADDED, "tokenizer"]), ADDED])
def test_records_of_older_versions_resume(saved, caplog, missing):
    caplog.set_level(logging.INFO)
    record = {name: value for name, value in saved.record.items() if name not in missing}
    assert check_resume(record, saved.config, saved.now()) == []
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
    old = {name for name in missing if name not in ("versions", "mixture", "tokenizer")}
    assert ("of an older version; not compared" in caplog.text) == bool(old)


def test_versions_that_an_older_record_lacks_are_not_compared(saved):
    record = saved.record | {"versions": {"jax": saved.record["versions"]["jax"]}}
    assert check_resume(record, saved.config, saved.now()) == []


def test_imported_weights_are_no_run(saved):
    record = {"step": 0, "layout": [[0, 1]], "published": {}}
    with pytest.raises(UserError, match=r"weights that were imported.*train\.init_from="):
        check_resume(record, saved.config, saved.now())


def test_the_order_of_rows_is_that_of_their_places(saved, monkeypatch):
    """Whatever decides about it: here the shuffle itself is another."""
    now = saved.now()
    places = now.datasets.train._starts
    reverse = {name: [starts[row] for row in range(ROWS)][::-1] for name, starts in places.items()}
    monkeypatch.setattr(now.datasets.train, "_starts", reverse)
    with pytest.raises(UserError, match="the order of rows that were read"):
        check_resume(saved.record, saved.config, now)


def test_one_page_of_other_text_is_seen_in_any_shard(saved):
    """The cost stated: at most four pages a shard are read; a whole other file differs in each."""
    folder = Path(saved.config.data.sources["text"].path) / "train"
    before = TokenShards(folder).sample()
    assert TokenShards(folder).sample() == before
    rewrite(folder, keep_index=True)
    assert TokenShards(folder).sample() != before


def test_the_table_in_the_documentation_is_up_to_date():
    text = (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- differences -->\n(.*?)\n<!-- /differences -->", text, re.DOTALL)
    assert block
    assert block[1].strip() == rules_table(), "run .venv/bin/python scripts/write_lists.py"
