"""What a step of the quickstart's model, a layer deeper, copies on a CPU, by its compiled program; of
as many tokens that activations are far larger than weights.
"""

from pathlib import Path

import jax
import pytest

from maxlm.config import load_run
from maxlm.plan.hlo import parse
from maxlm.train.setup import build_program, compile_step

QUICKSTART = Path(__file__).parents[2] / "configs/run/quickstart.yaml"


@pytest.fixture(scope="module")
def compiled():
    """The step's module, the bytes of the train state, and its rows x columns of activations."""
    # No parameter's dimensions are like an activation's.
    shape = ["model.num_layers=3", "train.batch_size=16", "data.sequence_length=256"]
    config = load_run(QUICKSTART, shape).config
    program = build_program(config, jax.devices()[:1])
    module = parse(compile_step(config, program).run.as_text())
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.state))
    tokens = config.train.batch_size * config.data.sequence_length
    return module, state, (config.model.num_layers, tokens)


def copies(module, *ops):
    """Yield each array that a copy or transpose of the program writes, fused or not, and its times."""
    for instruction, _, times in module.runs(lambda *_: 1):
        for inner in module.fused(instruction):
            if inner.op in ops:
                yield inner.results[0], times


def test_the_state_is_copied_no_more_than_once(compiled):
    module, state, _ = compiled
    alone = [i for i, *_ in module.runs(lambda *_: 1) if i.op == "copy"]
    parameters = {n for n, i in module.computations[module.entry].items() if i.op == "parameter"}
    of_state = sum(i.results[0].bytes for i in alone if i.operands[0] in parameters)
    # Its norms and the update read what the update overwrites.
    assert of_state <= state


def test_no_stack_of_activations_is_copied(compiled):
    module, _, (layers, tokens) = compiled
    written = [array for array, _ in copies(module, "copy", "copy-start", "dynamic-update-slice")]
    stacks = [a for a in written if a.shape[:1] == (layers,) and tokens in _runs(a.shape[1:])]
    assert stacks == []


def test_only_tiles_of_attention_and_operands_of_weight_gradients_are_transposed(compiled):
    module, _, (layers, tokens) = compiled
    width = 128 + 2 * 64 + 128  # queries, keys, values, what attention gives
    moved = sum(a.bytes * times for a, times in copies(module, "transpose"))
    # Cut into tiles in both passes and put together again; operands of products for the weights.
    assert moved <= 5 * layers * tokens * width * 4


def _runs(shape):
    """Return the products of the first sizes: B and B x T among them."""
    product, found = 1, []
    for size in shape:
        product *= size
        found.append(product)
    return found


@pytest.mark.parametrize(
    ("devices", "changes", "gather"),
    [
        (1, [], "step"),
        (1, ["train.compute_dtype=bfloat16"], "layer"),
        (2, ["mesh.fsdp=2"], "layer"),
    ],
    ids=["fp32", "bf16", "two devices"],
)
def test_parameters_that_are_whole_are_not_gathered(devices, changes, gather):
    program = build_program(load_run(QUICKSTART, changes).config, jax.devices()[:devices])
    assert program.execution.gather == gather
