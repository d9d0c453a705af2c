"""A run whose mixture changes on its way: resumed across the change, and with other stages."""

import shutil

import numpy as np

from maxlm.cli import main
from maxlm.config import load_run
from maxlm.data import token_hash
from maxlm.train.setup import open_datasets
from tests.train.conftest import curve, read_metrics, train

ROWS = 26  # the first stage's: its end is within the seventh step


def write_stages(write_run, tiny_data, name, **train_settings):
    for source in ("books", "web"):
        if not (tiny_data / source).exists():
            shutil.copytree(tiny_data / "text", tiny_data / source)
    sources = {source: {"path": str(tiny_data / source)} for source in ("books", "web")}
    stages = [{"until_tokens": 32 * ROWS}, {"weights": {"books": 3.0, "web": 1.0}}]
    return write_run(
        name,
        data={"sources": sources, "stages": stages},
        schedule={"kind": "constant", "warmup_steps": 0},
        train={"eval_every": 0, **train_settings},
    )


def test_resume_across_the_end_of_a_stage_changes_no_bit(write_run, tiny_data, tmp_path, refuse):
    whole = write_stages(write_run, tiny_data, "whole", num_steps=12)
    output = train(whole)
    assert "mixture: stage 0: tokens 0 to 832: books 50.0%, web 50.0%" in output
    # What was read of each source: 13 of 26 rows, then three of four.
    metrics, dataset = read_metrics(tmp_path / "whole"), open_datasets(load_run(whole).config).train
    for step, expected in ((6, 12), (12, 13 + 17)):
        passes = metrics[step]["data/epoch/books"]
        assert abs(passes * dataset.num_windows["books"] - expected) < 1.01
    running = np.zeros(2, np.uint32)
    for step in range(12):
        batch = dataset.rows(4 * step, 4 * step + 4)
        places = {"rows": np.arange(4), "columns": np.arange(32)}
        part = token_hash.batch_hash(batch["tokens"], batch["segment_ids"], **places)
        running = token_hash.advance(running, part)
        assert metrics[step + 1]["data/token_hash"] == token_hash.hexdigest(running)

    parts = write_stages(write_run, tiny_data, "parts", num_steps=5)
    train(parts)
    # Rows that were read may not be of other sources; one that is to come may be written otherwise.
    other = ["train.num_steps=12", "data.stages.0.until_tokens=320", "mesh.fsdp=4", "mesh.tensor=2"]
    message = refuse("train", parts, *other)
    assert "data.stages.0.until_tokens: 832.0 -> 320.0" in message
    assert "the mixture of rows that were read: [[0, {'books': 1, 'web': 1}]] -> " in message
    output = train(parts, "train.num_steps=12", "data.stages.1.weights={books: 6, web: 2}")
    assert "rows to come: data.stages.1.weights.books: 3.0 -> 6.0" in output
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")


def test_what_a_run_reads_is_shown_before_it(write_run, tiny_data, capsys):
    path = str(write_stages(write_run, tiny_data, "run", num_steps=12))
    assert main(["data", "mix", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["source", "tokens", "reads", "share"]
    assert lines[1].split()[0::2][:2] == ["books", f"{32 * (13 + 17):,}"]
    assert lines[5] == "stage 1: tokens 832 to 1,536: books 77.3%, web 22.7%"
    assert main(["data", "mix", path, "data.mix.max_epochs=0.01"]) == 2
    assert "data.stages.0 reads 832 tokens" in capsys.readouterr().err
