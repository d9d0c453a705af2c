"""The batch of a step, from the run's records: tokens and documents are those that were read."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from maxlm import cli
from maxlm.checkpoint import layout
from maxlm.config.errors import UserError
from maxlm.config.schema import RunConfig
from maxlm.tracing.batch import batch_of
from maxlm.train.setup import open_datasets
from tests.train.conftest import make_run

BATCHES = {10: 4, 20: 6}  # batch size of the steps up to a checkpoint
ROWS = {10: 40, 20: 100}


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory):
    """A run folder with the records of two checkpoints, between which the batch size changed."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(tiny_data / "text", folder / "web")
    settings = make_run(tiny_data, folder)
    settings["data"]["sources"] |= {"web": {"path": str(folder / "web"), "weight": 3.0}}
    for step, batch_size in BATCHES.items():
        settings["train"]["batch_size"] = batch_size
        config = RunConfig.model_validate(settings)
        record = {
            "step": step,
            "config": config.model_dump(mode="json"),
            "consumed": {"rows": ROWS[step], "tokens": 0, "flops": 0},
            "data": open_datasets(config).train.fingerprint,
        }
        path = layout.step_path(folder / "checkpoints", step) / layout.RECORD
        path.mkdir(parents=True)
        (path / layout.RECORD_FILE).write_text(
            json.dumps(layout.seal({"record": record, "leaves": {}}))
        )
    return folder


@pytest.mark.parametrize(
    ("step", "first", "stop"), [(0, 0, 4), (9, 36, 40), (10, 40, 46), (19, 94, 100), (25, 130, 136)]
)
def test_a_step_reads_the_rows_that_its_checkpoints_say(run, step, first, stop):
    batch = batch_of(run, step)
    assert (batch.first, batch.stop) == (first, stop)


def without_the_first_checkpoint(run, folder, lines=()):
    """A copy of the run, as it is once older checkpoints were deleted; with lines of metrics."""
    shutil.copytree(run, folder)
    shutil.rmtree(layout.step_path(folder / "checkpoints", 10))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_a_batch_size_that_changed_at_a_checkpoint_that_is_gone_is_no_guess(run, tmp_path, capsys):
    path = without_the_first_checkpoint(run, tmp_path / "run")
    for step in (0, 5, 9, 10, 19):
        assert cli.main(["data", "show", str(path), "--step", str(step)]) == 2
        message = capsys.readouterr().err
        assert f"which rows step {step} read is not known" in message
        assert "train.batch_size changed between steps 0 and 20" in message
    assert batch_of(path, 20).first == 100


def test_logged_rows_tell_what_checkpoints_do_not(run, tmp_path):
    lines = [
        {"step": 4, "data/rows": 16},
        {"step": 8, "data/rows": 32},
        {"step": 12, "data/rows": 52, "run/resumed_from": 10},
        {"step": 13, "data/rows": 58},
        {"step": 16, "data/rows": 76},
        {"step": 24, "data/rows": 124},
    ]
    path = without_the_first_checkpoint(run, tmp_path / "run", lines)
    rows = {0: (0, 4), 5: (20, 24), 7: (28, 32), 12: (52, 58), 14: (64, 70), 19: (94, 100)}
    for step, known in ({**rows, 20: (100, 106), 30: (160, 166)}).items():
        batch = batch_of(path, step)
        assert (batch.first, batch.stop) == known
    # Five rows a step on average, which no step had.
    for step in (8, 11):
        with pytest.raises(UserError, match=r"changed between steps 8 and 12"):
            batch_of(path, step)


def test_steps_after_a_change_that_no_checkpoint_has_yet_are_not_known(run, tmp_path):
    line = {"step": 25, "data/rows": 140, "run/resumed_from": 20}  # with 8 rows a step
    path = without_the_first_checkpoint(run, tmp_path / "run", [line])
    assert batch_of(path, 23).first == 124
    with pytest.raises(UserError, match=r"which rows step 25 read is not known"):
        batch_of(path, 25)


def test_passages_are_the_tokens_of_the_rows_and_texts_of_the_documents(run, tiny_data):
    seen, sources = 0, set()
    for step in range(0, 120, 3):
        batch = batch_of(run, step)
        rows = batch.dataset.rows(batch.first, batch.stop)
        tokens = np.concatenate([rows["tokens"], rows["targets"][:, -1:]], axis=1)
        found = [[] for _ in tokens]
        for passage in batch.passages():
            shards = batch.dataset.shards[passage.source]
            files = [entry.file for entry in shards.index.shards]
            before = sum(
                one.tokens for one in shards.index.shards[: files.index(passage.shard.name)]
            )
            found[passage.row - batch.first].append(
                shards.read(before + passage.offset, passage.tokens)
            )
            raw = (tiny_data / "raw" / passage.id.rpartition("/")[2]).read_text()
            assert passage.text in raw
            assert passage.shard.parent == shards.folder
            sources.add(passage.source)
            seen += 1
        assert np.array_equal(np.stack([np.concatenate(row) for row in found]), tokens)
    assert seen > 200
    assert sources == {"text", "web"}


def test_the_command_prints_documents_files_and_places(run, capsys):
    assert cli.main(["data", "show", str(run), "--step", "3", "--json"]) == 0
    passages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {one["row"] for one in passages} == {12, 13, 14, 15}
    assert cli.main(["data", "show", str(run), "--step", "3"]) == 0
    out = capsys.readouterr().out
    for one in passages:
        end = one["first"] + one["tokens"]
        assert f"{one['source']}: {one['id']}, tokens [{one['first']}, {end})" in out
        assert f"{one['shard']}, from token {one['offset']:,}" in out


def test_a_folder_that_is_no_run_is_told_before_jax_is_loaded(tmp_path):
    script = (
        f"import sys; from maxlm.cli import main; "
        f"code = main(['data', 'show', {str(tmp_path)!r}, '--step', '3']); "
        "sys.exit(90 if {'jax', 'numpy'} & sys.modules.keys() else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert f"{tmp_path}: no run with a checkpoint" in done.stderr


def test_what_cannot_be_traced_is_said(run, tmp_path, capsys):
    assert cli.main(["data", "show", str(tmp_path), "--step", "3"]) == 2
    assert "no run with a checkpoint" in capsys.readouterr().err
    assert cli.main(["data", "show", str(run), "--step", "-1"]) == 2
    assert "--step -1" in capsys.readouterr().err
    shutil.copytree(run, tmp_path / "run")
    record = tmp_path / "run/checkpoints/00000020" / layout.RECORD / layout.RECORD_FILE
    content = layout.read_sealed(record.parents[1])
    content["record"]["data"] = "0"
    record.write_text(json.dumps(layout.seal(content)))
    assert cli.main(["data", "show", str(tmp_path / "run"), "--step", "15"]) == 2
    assert "its data are not what they were at step 20" in capsys.readouterr().err
