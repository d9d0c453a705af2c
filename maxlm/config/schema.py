"""Every knob of a run: frozen, strict sections, each handed only to its owner.

This file is the list; the architecture is in `model.py` and `layers/`, optimizers are in `optim/`,
and what is learned is in `objectives/`. Nothing here imports jax, so launchers, editors and linters
read it in a fraction of a second. Checks that need more than one section live in `checks.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from maxlm.config.mixture.mix import MixConfig
from maxlm.config.mixture.stages import StageConfig
from maxlm.config.model import ModelConfig
from maxlm.config.objectives import DEFAULT_OBJECTIVE, Objective
from maxlm.config.optim import DEFAULT_OPTIMIZER, Optimizer
from maxlm.config.pipeline import PipelineConfig
from maxlm.config.pipeline.raw import RawTextConfig
from maxlm.config.section import (
    Count,
    Fraction,
    Name,
    NonNegativeFloat,
    OnResume,
    PositiveFloat,
    PositiveInt,
    Section,
    as_tuple,
)

# --- mesh, data -----------------------------------------------------------------------------------


AxisSize = Annotated[int, Field(le=2**20)]
MESH_AXES = ("data", "stage", "fsdp", "expert", "context", "tensor")


class MeshConfig(Section):
    """Devices along each axis; their product is the device count.

    One axis may be -1: the devices left over.
    """

    data: AxisSize = Field(1, description="batch; parameters replicated")
    stage: AxisSize = Field(1, description="layer stack (pipeline)")
    fsdp: AxisSize = Field(-1, description="batch and every parameter, gradient and optimizer slot")
    expert: AxisSize = Field(1, description="batch and experts of MoE layers")
    context: AxisSize = Field(1, description="sequence")
    tensor: AxisSize = Field(1, description="heads, hidden units, vocabulary")
    stage_repeats: PositiveInt = Field(
        1,
        description="chunks of layers per stage (interleaved, arXiv:2104.04473): divides the pipeline's bubble",
    )
    context_kind: Literal["ring", "all_gather", "ulysses"] = Field(
        "ring",
        description="attention over context: keys and values go round (arXiv:2310.01889), are gathered, or all heads' "
        "parts of the sequence are exchanged for whole sequences of some heads (arXiv:2309.14509)",
    )

    elastic: Literal["none", "batch"] = Field(
        "none",
        description="where there are fewer or more devices than this: refuse, or let data, then fsdp, and "
        "train.microbatches follow; the batch stays",
    )

    @property
    def sizes(self) -> dict[str, int]:
        """Devices along each axis, outermost first."""
        return {axis: getattr(self, axis) for axis in MESH_AXES}

    @property
    def batch_devices(self) -> int:
        """Devices that the sequences of a batch are split over."""
        return self.data * self.fsdp * self.expert

    @property
    def virtual_stages(self) -> int:
        """Runs of layers that microbatches walk through, `stage_repeats` for each stage."""
        return self.stage * self.stage_repeats


class SourceConfig(Section):
    """A folder of token shards (`train/` and `validation/`), and its share of the mixture.

    Another `path` may hold the same tokens: whether it does is checked by their fingerprint when it
    is opened.
    """

    path: Annotated[str, OnResume.FREE]
    weight: PositiveFloat = 1.0
    tokens: Annotated[PositiveFloat | None, OnResume.MIXTURE] = Field(
        None, description="that a run reads of it, such as 2e9; the weights share out the rest"
    )
    max_epochs: Annotated[PositiveFloat | None, OnResume.MIXTURE] = Field(
        None, description="how often a run may read it (null: data.mix.max_epochs)"
    )
    raw: Annotated[RawTextConfig | None, OnResume.FREE] = Field(
        None, description="raw text that `maxlm prepare` turns into this folder"
    )


class DataConfig(Section):
    """What the model reads: a weighted mixture of sources, packed into sequences."""

    sources: Annotated[dict[Name, SourceConfig], Field(min_length=1)]
    mix: Annotated[MixConfig, OnResume.MIXTURE] = MixConfig()
    stages: Annotated[tuple[StageConfig, ...], BeforeValidator(as_tuple), OnResume.MIXTURE] = Field(
        (), description="mixtures one after the other, by tokens (none: one mixture)"
    )
    tokenizer: Annotated[str, OnResume.FREE] = Field(
        description="file or folder: SentencePiece model, tokenizer.json, tiktoken file; a SentencePiece model that is "
        "absent is trained by `maxlm prepare`"
    )
    vocab_size: Annotated[PositiveInt | None, OnResume.FREE] = Field(
        None,
        description="pieces of a tokenizer that `maxlm prepare` trains (null: model.vocab_size)",
    )
    sequence_length: PositiveInt = Field(description="tokens per sequence")
    shuffle: Literal["global", "none"] = "global"
    pipeline: Annotated[PipelineConfig, OnResume.FREE] = Field(
        PipelineConfig(),
        description="what `maxlm prepare` does with raw text before it tokenizes it",
    )
    prefetch_batches: Annotated[int, Field(ge=1, le=1000), OnResume.FREE] = 4


# --- schedule -------------------------------------------------------------------------------------


class ScheduleConfig(Section):
    """Learning rate over steps: linear warm-up, then `kind`."""

    kind: Literal["cosine", "linear", "wsd", "constant", "inverse_sqrt"] = "cosine"
    warmup_steps: Count = 0
    total_steps: PositiveInt | None = Field(
        None, description="step where the decay ends (default: train.num_steps)"
    )
    cooldown_steps: Count = Field(
        0, description="wsd: linear decay over the last steps (arXiv:2404.06395)"
    )
    final_fraction: Fraction = Field(
        0.1, description="last learning rate / peak, for cosine, linear and wsd"
    )


# --- train, checkpoint, metrics, runtime ----------------------------------------------------------


class InitFromConfig(Section):
    """Weights that a run starts from, in any layout."""

    path: str = Field(
        description="a run_dir, what `maxlm import` wrote, or a folder of published weights (config.json)"
    )
    checkpoint: Count | None = Field(
        None, description="the step of the checkpoint to read (null: the newest whole one)"
    )
    optimizer: bool = Field(False, description="take the optimizer's slots too")
    step: bool = Field(
        False, description="count on from its step: schedule, rows of data, tokens and FLOPs"
    )
    text_only: bool = Field(
        False, description="of published weights of text and images, take the text model alone"
    )


def _as_init_from(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class SpikesConfig(Section):
    """Steps whose loss or gradient norm is far above those before, and what is done about them."""

    kind: Literal["none", "watch", "skip"] = Field(
        "watch",
        description="none; watch: told, and nothing else changes; skip: parameters and optimizer stay as they were",
    )
    window: Annotated[int, Field(ge=8, le=4096)] = Field(
        128, description="steps before it, skipped ones left out, that a step is judged by"
    )
    min_steps: PositiveInt = Field(64, description="so many of them before any step is judged")
    sigmas: PositiveFloat = Field(
        8.0,
        description="a spike is so many robust standard deviations above the median: of the loss, or of the "
        "logarithm of the gradient norm",
    )
    max_skipped: PositiveInt = Field(
        16, description="skipped steps of the last `window`, non-finite ones too, before `then`"
    )
    then: Literal["stop", "roll_back"] = Field(
        "stop",
        description="after max_skipped, or train.max_skipped_steps in a row: stop; or take back all since the newest "
        "checkpoint before them, and go on with the batches that follow",
    )
    max_roll_backs: PositiveInt = Field(3, description="of a run, before it stops")

    @property
    def steps_held(self) -> int:
        """Steps in the window, 0 without one."""
        return 0 if self.kind == "none" else self.window


class TrainConfig(Section):
    """The training loop and the step."""

    num_steps: Annotated[PositiveInt, OnResume.FREE]
    init_from: Annotated[InitFromConfig | None, BeforeValidator(_as_init_from)] = Field(
        None, description="weights to start from, a path or a section (null: random ones)"
    )
    batch_size: PositiveInt = Field(description="sequences per step over the whole mesh")
    microbatches: Annotated[PositiveInt, OnResume.PIECES] = Field(
        1,
        description="gradient accumulation: pieces the batch is worked in; experts are balanced in each",
    )
    gather: Annotated[Literal["layer", "microbatch", "step"], OnResume.FREE] = Field(
        "layer",
        description="when sharded parameters are gathered: ZeRO-3, ZeRO-2, ZeRO-1 (arXiv:1910.02054)",
    )
    remat: Annotated[
        Literal["none", "full"] | dict[str, Literal["recompute", "save", "offload"]], OnResume.FREE
    ] = Field(
        "none",
        description="what the backward pass computes again: nothing, all within blocks, or a choice for each "
        "activation that layers name: computed again (as those without a choice), kept, or kept in host memory",
    )
    offload: Annotated[
        tuple[Literal["optimizer", "activations"], ...], BeforeValidator(as_tuple), OnResume.FREE
    ] = Field(
        (),
        description="what lies in host memory: optimizer slots between steps, inputs of blocks until backward",
    )
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on TPU and GPU, float32 on CPU"
    )
    max_skipped_steps: Annotated[PositiveInt, OnResume.FREE] = Field(
        10, description="stop after so many skipped steps in a row: not finite, or spikes"
    )
    spikes: Annotated[SpikesConfig, OnResume.FREE] = SpikesConfig()
    eval_every: Annotated[Count, OnResume.FREE] = Field(
        0, description="steps between evaluations (0: only at the end)"
    )
    eval_batches: Annotated[PositiveInt, OnResume.FREE] = 8
    log_every: Annotated[PositiveInt, OnResume.FREE] = 10

    @property
    def remat_choices(self) -> dict[str, str]:
        """The choices for single activations, none where `remat` speaks of all."""
        return {} if isinstance(self.remat, str) else dict(self.remat)


class StoreConfig(Section):
    """A second place, such as an object store: whole checkpoints are copied there in the
    background.
    """

    url: str = Field(
        description="gs://BUCKET/FOLDER, s3://BUCKET/FOLDER, another URL that fsspec knows, or a folder outside of "
        "run_dir; one for each run"
    )
    every: PositiveInt | None = Field(
        None,
        description="copy only checkpoints whose step is a multiple, and the last (null: all that time allows)",
    )
    keep_last: PositiveInt = 3
    keep_every: PositiveInt | None = Field(
        None, description="also keep every copy whose step is a multiple"
    )
    threads: Annotated[int, Field(ge=1, le=64)] = Field(4, description="files at a time")
    megabytes_per_second: PositiveFloat | None = Field(
        None, description="at most so fast, both ways (null: no limit)"
    )
    wait_seconds: NonNegativeFloat = Field(
        600.0, description="how long the end of a run waits for the last copy"
    )


class CheckpointConfig(Section):
    """When to save, and what to keep."""

    every: Count = Field(100, description="steps between checkpoints (0: only at the end)")
    keep_last: PositiveInt = 3
    keep_every: PositiveInt | None = Field(
        None, description="also keep every checkpoint whose step is a multiple"
    )
    at_steps: Annotated[tuple[PositiveInt, ...], BeforeValidator(as_tuple)] = Field(
        (), description="also save after these steps, and keep these checkpoints"
    )
    verify: Literal["sample", "all", "none"] = Field(
        "sample",
        description="arrays to read back of each checkpoint before it counts as whole and older ones are deleted",
    )
    resume_from: Count | None = Field(
        None,
        description="go back to the checkpoint of this step, once; later ones are set aside",
    )
    allow_config_change: bool = Field(
        False, description="resume although settings, text or devices that matter have changed"
    )
    loss_jump: Literal["stop", "warn", "off"] = Field(
        "stop",
        description="what is done if the first losses after a resume are far above those before it (off: not compared)",
    )
    store: StoreConfig | None = Field(None, description="where copies go (null: nowhere)")
    notice_seconds: PositiveFloat | None = Field(
        None,
        description="between the signal to stop and the end by force (null: as the launcher says, by "
        "MAXLM_NOTICE_SECONDS)",
    )


class MetricsConfig(Section):
    """Where curves go (RUN_DIR/metrics.jsonl is always written)."""

    tensorboard: bool = True
    prediction: str | None = Field(
        None,
        description="file of `maxlm ladder fit --predict`: the expected loss is drawn beside the measured one",
    )
    peak_tflops: PositiveFloat | None = Field(
        None,
        description="peak TFLOP/s of one device in the compute dtype, for MFU (default: a table by device kind)",
    )


class ProfileConfig(Section):
    """Steps to trace with the profiler, into RUN_DIR/profile."""

    start_step: Count
    num_steps: PositiveInt = 3


class KernelsConfig(Section):
    """Which implementation runs, for each operation that has several; auto: the best for platform
    and model.
    """

    attention: Literal[
        "auto",
        "flash_tpu",
        "flash_hopper",
        "flash_triton",
        "splash",
        "cudnn",
        "tokamax",
        "chunked",
        "interpret",
    ] = Field("auto", description="interpret: flash_tpu step by step, on a CPU")


Limit = Annotated[float, Field(gt=0, le=1e8)] | None


class TimeoutsConfig(Section):
    """How long each phase may take before the processes are ended with their stacks (null: for ever)."""

    start_seconds: Limit = Field(1800.0, description="devices, other processes, data, run_dir")
    restore_seconds: Limit = Field(3600.0, description="reading a checkpoint or weights")
    compile_seconds: Limit = Field(3600.0, description="of the step, and of the evaluation")
    step_seconds: Limit = Field(1800.0, description="a step, its batch included")
    evaluation_seconds: Limit = Field(1800.0, description="a batch of an evaluation")
    save_seconds: Limit = Field(3600.0, description="what training waits for in a save")

    def by_phase(self) -> dict[str, float | None]:
        """Return the seconds by the names of `maxlm.process.phases`."""
        return {name.removesuffix("_seconds"): value for name, value in self.model_dump().items()}


class RuntimeConfig(Section):
    """The process: seed, devices, kernels, timeouts."""

    seed: Annotated[int, Field(ge=0, lt=2**32), OnResume.FIXED] = 0
    platform: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    device_count: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None,
        description="fake CPU devices per process, to try a mesh on a laptop (needs platform cpu or auto)",
    )
    kernels: KernelsConfig = KernelsConfig()
    timeouts: TimeoutsConfig = TimeoutsConfig()
    check_replicas_every: Count = Field(
        0,
        description="steps between comparisons of what devices hold copies of (0: before each save alone)",
    )
    compile_cache: str | None = Field(
        "auto",
        description="folder of compiled programs; auto: RUN_DIR/compiled, so that a restart compiles nothing "
        "(null: none); several CPU devices use none",
    )
    profile: ProfileConfig | None = None


class RunConfig(Section):
    """One run, from raw text to checkpoints and curves."""

    run_dir: Annotated[str, OnResume.FREE]
    model: ModelConfig
    mesh: Annotated[MeshConfig, OnResume.FREE] = MeshConfig()
    data: DataConfig
    objective: Objective = DEFAULT_OBJECTIVE
    optimizer: Optimizer = DEFAULT_OPTIMIZER
    schedule: Annotated[ScheduleConfig, OnResume.RATE] = ScheduleConfig()
    train: TrainConfig
    checkpoint: Annotated[CheckpointConfig, OnResume.FREE] = CheckpointConfig()
    metrics: Annotated[MetricsConfig, OnResume.FREE] = MetricsConfig()
    runtime: Annotated[RuntimeConfig, OnResume.FREE] = RuntimeConfig()

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a batch."""
        return self.train.batch_size * self.data.sequence_length

    @property
    def most_pieces(self) -> int | None:
        """Pieces that a tokenizer may have."""
        return self.model.vocab_size

    @property
    def trained_pieces(self) -> int | None:
        """Pieces of a tokenizer that is trained."""
        return self.data.vocab_size or self.model.vocab_size


class DataFileConfig(Section):
    """A file with `data` alone: all that `maxlm prepare` needs, and what runs include."""

    data: DataConfig

    @property
    def most_pieces(self) -> int | None:
        """Pieces that a tokenizer may have: no model limits them."""
        return None

    @property
    def trained_pieces(self) -> int | None:
        """Pieces of a tokenizer that is trained; None where the file does not say."""
        return self.data.vocab_size


Preparable = RunConfig | DataFileConfig
"""What `maxlm prepare` works on."""
