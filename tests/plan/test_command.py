"""`maxlm plan` from end to end, with libtpu's compiler where it is installed; and reading what that
says.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys

import jax
import pytest
from rich.console import Console

from maxlm import cli
from maxlm.config import load_run
from maxlm.plan import command
from maxlm.plan.command import _largest_buffers, _too_much, make_plan
from maxlm.plan.estimate import Traffic
from maxlm.plan.report import GIB, Buffer, Cost, Layout, Memory, Plan, show
from maxlm.plan.topology import parse_topology

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: scripts/setup tpu"
)
LAYOUT = Layout(
    "run.yaml",
    "v5p:4x4x4",
    64,
    {"data": 1, "fsdp": 64},
    "",
    8,
    16,
    {"attention": "chunked"},
    {"jax": "1"},
)

RUN = """
run_dir: unused
model:
  vocab_size: 1024
  num_layers: 2
  embed_dim: 256
  block: {mixer: {kind: attention, num_heads: 2, head_dim: 128}, ffn: {kind: mlp, hidden_dim: 512}}
data: {sources: {none: {path: none}}, tokenizer: none, sequence_length: 512}
mesh: {fsdp: 4}
objective: {chunk_tokens: 512}
train: {num_steps: 5, batch_size: 4, remat: full}
"""

REPORT = """Memory Space: default (color=0)
Total bytes: 9000 (9GiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
    2.00GiB( 10%);    2.00GiB;            0;               14; f32[32,256], 5*bf16[32,4,8192,1024]
    4.00GiB( 20%);    2.00GiB;   2147483648;                5; 5*bf16[32,4,8192,1024]
    5.50GiB( 30%); 1536.00MiB;   4294967296;                1; f32[2048,128256]
  The rest 307 values are less than 5% of the total size and not shown.

  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
  448.00MiB(100%);  448.00MiB;            0;                2; 2*f32[32,256,14336]
"""


def words(plan):
    console = Console(width=100, markup=False, highlight=False)
    with console.capture() as captured:
        show(plan, console)
    return captured.get()


def test_the_compilers_refusal_is_read():
    message = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (98.50G) "
    assert _too_much(message + "exceeds available HBM (15.75G).") == int(98.5 * GIB)
    assert _too_much("Ran out of memory in memory space vmem. Used 20.00M of 16.00M vmem.") is None


def test_the_largest_buffers_are_read(tmp_path):
    (tmp_path / "module_0.memory-usage-report.txt").write_text(
        REPORT.replace("*", "\N{MULTIPLICATION SIGN}")
    )
    assert _largest_buffers(tmp_path) == [
        Buffer(2, 2 * GIB, "bf16[32,4,8192,1024]"),
        Buffer(1, GIB * 3 // 2, "f32[2048,128256]"),
    ]


def test_what_does_not_fit_comes_with_buffers_and_a_cure():
    shown = words(
        Plan(LAYOUT, Memory(98 * GIB, 95 * GIB, [Buffer(2, 2 * GIB, "bf16[32,4]")]), None)
    )
    assert "does not fit: 98.00 of 95.00 GiB" in shown
    assert "train.remat=full" in shown
    assert "bf16[32,4]" in shown


def test_estimates_bubble_and_traffic_are_shown_and_written():
    seconds = {
        name: {"products": time, "communication": 0.5}
        for name, time in (("nominal", 1.5), ("high", 3.5))
    }
    cost = Cost(
        60.0,
        4e12,
        5e12,
        0.0,
        2.0,
        1e12,
        [Traffic("all-gather", ("fsdp",), 64.0, 2e9)],
        seconds,
        8e12,
        0.25,
    )
    plan = Plan(LAYOUT, Memory(8 * GIB, 95 * GIB, []), cost)
    shown = words(plan)
    for text in (
        "2 - 4 s",
        "25.0% - 12.5%",
        "1.25 times",
        "25.0% of the step",
        "2 runs of kernels",
        "no cycles for 20.0% of the products' FLOPs",
        "2.000",
    ):
        assert text in shown
    answer = json.loads(json.dumps(plan.to_json()))
    assert answer["fits"]
    assert answer["cost"]["mfu"] == {"nominal": 0.25, "high": 0.125}
    assert answer["cost"]["traffic"][0]["wire_bytes"] == answer["cost"]["wire_bytes"] == 2e9


@needs_libtpu
@pytest.mark.tpu_aot
def test_a_small_step_compiles_for_a_slice_that_is_not_here(tmp_path, capfd):
    (tmp_path / "run.yaml").write_text(RUN)
    arguments = [
        "plan",
        str(tmp_path / "run.yaml"),
        "--topology",
        "v5p:2x2x1",
        "--json",
        str(tmp_path / "plan.json"),
    ]
    assert cli.main(arguments) == 0
    answer = json.loads((tmp_path / "plan.json").read_text())
    state_bytes = 12 * answer["layout"]["num_parameters"] / 4
    assert state_bytes < answer["memory"]["needed_bytes"] < 20 * state_bytes
    cost = answer["cost"]
    assert answer["layout"]["kernels"] == {"attention": "flash_tpu"}
    # Two layers, 2 heads of 128, 512 tokens, of which a tile of queries sees all: forward twice
    # (remat), and backward.
    assert cost["kernel_flops"] == 2 * 2 * (2 * 512 * 512) * (2 * 2 * 128 + 5 * 128)
    assert cost["unstated_kernels"] == 0
    assert 1.15 < (cost["product_flops"] + cost["kernel_flops"]) / cost["model_flops"] < 1.7
    assert {tuple(one["axes"]) for one in cost["traffic"]} == {("fsdp",)}
    assert (
        0
        < cost["step_seconds"]["low"]
        < cost["step_seconds"]["nominal"]
        < cost["step_seconds"]["high"]
    )
    assert "fits:" in capfd.readouterr().out


@needs_libtpu
@pytest.mark.tpu_aot
def test_a_machine_without_a_tpu_hears_nothing_of_libtpu():
    program = "from maxlm import runtime; from maxlm.config.schema import RuntimeConfig; runtime.start(RuntimeConfig())"
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("JAX_PLATFORMS", "XLA_FLAGS")
    }
    environment = {name: value for name, value in environment.items() if "TPU" not in name}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


@needs_libtpu
def test_an_elastic_run_is_planned_as_it_would_be_fitted(tmp_path, monkeypatch):
    def refuse(config, program, options):
        assert config.train.microbatches == 4
        raise jax.errors.JaxRuntimeError("(98.50G) exceeds available HBM (15.75G)")

    monkeypatch.setattr(command, "devices_of", lambda topology: jax.devices()[:4])
    monkeypatch.setattr(command, "compile_step", refuse)
    (tmp_path / "run.yaml").write_text(RUN)
    overrides = [
        *("mesh.elastic=batch", "mesh.data=2", "train.batch_size=16", "train.microbatches=2"),
        *("model.vocab_size=256", "model.num_layers=1"),
    ]
    config = load_run(tmp_path / "run.yaml", overrides).config
    plan = make_plan(config, parse_topology("v5p:2x2x1"), "run.yaml")
    assert (plan.layout.mesh["data"], plan.layout.mesh["fsdp"]) == (1, 4)
    assert plan.layout.fitted == (
        "4 devices, and the mesh was written for 8: mesh.data 2 -> 1, train.microbatches 2 -> 4; the batch stays "
        "16 sequences"
    )
    assert re.search("fitted to +4 devices, and the mesh", words(plan))


def test_mistakes_come_before_anything_is_compiled(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(RUN)
    assert cli.main(["plan", str(tmp_path / "run.yaml"), "--topology", "v5x:2x2x1"]) == 2
    assert "did you mean" in capsys.readouterr().err
