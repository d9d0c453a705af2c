"""Every knob of a run: frozen, strict sections, each handed only to its owner.

This file is the list. It imports no jax, so launchers, editors and linters read it in a fraction of a second.
Checks that need more than one section live in `checks.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A frozen group of settings: unknown keys, wrong types, nan and inf are refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


# --- model -----------------------------------------------------------------------------------------------------------


class AttentionConfig(Section):
    """Multi-head, grouped-query or multi-query attention (arXiv:1706.03762, arXiv:2305.13245)."""

    kind: Literal["attention"] = "attention"
    window: PositiveInt | None = Field(None, description="attend to the last `window` tokens only (null: all)")
    qk_norm: Literal["none", "rmsnorm"] = Field("none", description="normalise each head's query and key")
    bias: Literal["none", "qkv", "all"] = Field("none", description="projections with a bias")
    softcap: PositiveFloat | None = Field(
        None, description="squash scores s to softcap * tanh(s / softcap) (arXiv:2408.00118; null: leave them)"
    )
    sinks: bool = Field(False, description="a learned score per head for attention to nothing (arXiv:2309.17453)")


class MlpConfig(Section):
    """Feed-forward layer; swiglu and geglu are gated (arXiv:2002.05202)."""

    kind: Literal["mlp"] = "mlp"
    activation: Literal["swiglu", "geglu", "relu", "gelu"] = "swiglu"
    bias: Literal["none", "all"] = "none"


class RouterConfig(Section):
    """How a token scores and picks its experts, in fp32."""

    kind: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="scores over all experts (arXiv:2101.03961), or each by itself (arXiv:2412.19437)"
    )
    weights: Literal["normalised", "as_scored"] = Field(
        "normalised", description="weights of the picked experts: their scores divided by the sum, or the scores"
    )
    scale: PositiveFloat = Field(1.0, description="factor on the weights")
    num_groups: PositiveInt = Field(1, description="groups of neighbouring experts")
    top_groups: PositiveInt = Field(
        1, description="groups a token may pick from: those with the largest sum of their two best (arXiv:2412.19437)"
    )
    apply_to: Literal["output", "input"] = Field("output", description="what of an expert the weight multiplies")


class BalanceConfig(Section):
    """What keeps experts equally busy; each at 0 is off. Loads are those of all devices together."""

    auxiliary_loss: Annotated[float, Field(ge=0)] = Field(
        0.01, description="weight of E sum(load x mean score) per layer and microbatch (arXiv:2101.03961, eq. 4)"
    )
    z_loss: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight of the router's log(Z)^2 per layer (arXiv:2202.08906)"
    )
    bias_update: Annotated[float, Field(ge=0)] = Field(
        0.0, description="step by which a bias on the picking moves against the load, no gradient (arXiv:2408.15664)"
    )


class MoeConfig(Section):
    """A mixture of experts: each token goes through `experts_per_token` of them, and all through a shared one."""

    kind: Literal["moe"] = "moe"
    num_experts: PositiveInt
    experts_per_token: PositiveInt
    expert_dim: PositiveInt = Field(description="hidden units of one expert")
    shared_dim: Count = Field(0, description="hidden units of the experts that see every token, summed (0: none)")
    activation: Literal["swiglu", "geglu", "relu", "gelu"] = "swiglu"
    router: RouterConfig = RouterConfig()
    balance: BalanceConfig = BalanceConfig()
    capacity_factor: PositiveFloat | None = Field(
        None, description="an expert takes this times its fair share of a sequence's tokens, no more (null: dropless)"
    )
    buffer_factor: PositiveFloat = Field(
        2.0,
        description="rows that experts make room for on a device of mesh.expert, times an even load; more come in "
        "further rounds, and none is dropped",
    )


class BlockConfig(Section):
    """One block: x + mixer(norm(x)), then x + ffn(norm(x))."""

    mixer: AttentionConfig = AttentionConfig()
    ffn: Annotated[MlpConfig | MoeConfig, Field(discriminator="kind")] = MlpConfig()


class NormConfig(Section):
    """Normalisation before every mixer and ffn, and before the head."""

    kind: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    epsilon: PositiveFloat = 1e-5


class RopeScaling(Section):
    """Llama 3's stretching of low rotary frequencies for long contexts (arXiv:2407.21783)."""

    kind: Literal["llama3"] = "llama3"
    factor: PositiveFloat = 8.0
    low_frequency_factor: PositiveFloat = 1.0
    high_frequency_factor: PositiveFloat = 4.0
    original_length: PositiveInt = 8192


class RopePosition(Section):
    """Rotary positions (arXiv:2104.09864), half-split layout."""

    kind: Literal["rope"] = "rope"
    theta: PositiveFloat = 10_000.0
    scaling: RopeScaling | None = None


class LearnedPosition(Section):
    """A learned vector per position, added to the embeddings."""

    kind: Literal["learned"] = "learned"
    max_length: PositiveInt = 1024


class NoPosition(Section):
    """No position information besides the causal mask."""

    kind: Literal["none"] = "none"


Position = Annotated[RopePosition | LearnedPosition | NoPosition, Field(discriminator="kind")]


class ModelConfig(Section):
    """A decoder: first `prefix`, then `pattern` repeated until there are `num_layers` blocks."""

    vocab_size: PositiveInt = Field(description="rows of the embedding; at least the tokenizer's pieces")
    num_layers: PositiveInt = Field(
        description="blocks in the stack; after the prefix, a multiple of the pattern's length"
    )
    embed_dim: PositiveInt = Field(description="width of the residual stream")
    num_heads: PositiveInt = Field(description="query heads")
    num_kv_heads: PositiveInt = Field(
        default_factory=lambda values: values["num_heads"], description="key/value heads (default: num_heads)"
    )
    head_dim: PositiveInt = Field(
        default_factory=lambda values: max(values["embed_dim"] // values["num_heads"], 1),
        description="width of one head (default: embed_dim / num_heads)",
    )
    mlp_dim: PositiveInt = Field(description="hidden units of the feed-forward layers")
    prefix: Annotated[tuple[BlockConfig, ...], BeforeValidator(_as_tuple)] = Field(
        (), description="blocks before the repeated ones, once, such as the dense layers that precede experts"
    )
    pattern: Annotated[tuple[BlockConfig, ...], BeforeValidator(_as_tuple), Field(min_length=1)] = (BlockConfig(),)
    norm: NormConfig = NormConfig()
    position: Position = RopePosition()
    tie_embeddings: bool = Field(False, description="use the embedding table as the output projection too")
    init_std: PositiveFloat = Field(
        0.02, description="standard deviation of initial weights; outputs of mixer and ffn get / sqrt(2 num_layers)"
    )


# --- mesh, data ------------------------------------------------------------------------------------------------------


MESH_AXES = ("data", "stage", "fsdp", "expert", "context", "tensor")


class MeshConfig(Section):
    """Devices along each axis; their product is the device count. One axis may be -1: the devices left over."""

    data: int = Field(1, description="batch; parameters replicated")
    stage: int = Field(1, description="layer stack (pipeline)")
    fsdp: int = Field(-1, description="batch and every parameter, gradient and optimizer slot")
    expert: int = Field(1, description="batch and experts of MoE layers")
    context: int = Field(1, description="sequence")
    tensor: int = Field(1, description="heads, hidden units, vocabulary")
    stage_repeats: PositiveInt = Field(
        1, description="chunks of layers per stage (interleaved, arXiv:2104.04473): divides the pipeline's bubble"
    )
    context_kind: Literal["ring", "all_gather", "ulysses"] = Field(
        "ring",
        description="attention over context: keys and values go round (arXiv:2310.01889), are gathered, or all heads' "
        "parts of the sequence are exchanged for whole sequences of some heads (arXiv:2309.14509)",
    )

    @property
    def sizes(self) -> dict[str, int]:
        """Devices along each axis, outermost first."""
        return {axis: getattr(self, axis) for axis in MESH_AXES}


class RawTextConfig(Section):
    """Where raw text comes from, for `maxlm prepare`."""

    kind: Literal["python_stdlib", "files"] = Field(
        description="python_stdlib: sources of the running Python's standard library; files: text files under `paths`"
    )
    paths: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = Field(
        (), description="files, or folders searched for *.txt, *.md, *.py and *.jsonl (key `text`)"
    )
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="share of documents held out, chosen by a hash of the document's name"
    )
    max_document_bytes: PositiveInt = Field(
        1_000_000, description="longer documents are cut here; all pieces go to one split"
    )
    follow_links: bool = Field(False, description="read files and folders elsewhere that links in the folders lead to")
    duplicates: Literal["drop", "drop_exact", "keep"] = Field(
        "drop",
        description="copies of earlier documents of any source of the run: drop them and near copies (word 5-grams, "
        "Jaccard similarity 0.8), drop exact ones alone, or keep all, and risk that both splits hold the same text",
    )


class SourceConfig(Section):
    """A folder of token shards (`train/` and `validation/`), and its share of the mixture."""

    path: str
    weight: PositiveFloat = 1.0
    raw: RawTextConfig | None = Field(None, description="raw text that `maxlm prepare` turns into this folder")


class DataConfig(Section):
    """What the model reads: a weighted mixture of sources, packed into sequences."""

    sources: Annotated[dict[Name, SourceConfig], Field(min_length=1)]
    tokenizer: str = Field(description="SentencePiece model file; `maxlm prepare` trains it when it is absent")
    sequence_length: PositiveInt = Field(description="tokens per sequence")
    shuffle: Literal["global", "none"] = "global"
    prefetch_batches: PositiveInt = 4


# --- optimizer, schedule ---------------------------------------------------------------------------------------------


class OverrideConfig(Section):
    """Other settings for parameters whose path (`stack/0/mixer/query`) matches a regular expression; the last wins."""

    match: str
    learning_rate_scale: Annotated[float, Field(ge=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] | None = None


class OptimizerConfig(Section):
    """AdamW with decoupled weight decay (arXiv:1711.05101) after clipping by global norm."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat = 3e-4
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    epsilon: PositiveFloat = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    no_decay: Annotated[tuple[Literal["norms", "biases", "embeddings"], ...], BeforeValidator(_as_tuple)] = (
        "norms",
        "biases",
        "embeddings",
    )
    clip_norm: PositiveFloat | None = 1.0
    overrides: Annotated[tuple[OverrideConfig, ...], BeforeValidator(_as_tuple)] = ()


class ScheduleConfig(Section):
    """Learning rate over steps: linear warm-up, then `kind`."""

    kind: Literal["cosine", "linear", "wsd", "constant", "inverse_sqrt"] = "cosine"
    warmup_steps: Count = 0
    total_steps: PositiveInt | None = Field(None, description="step where the decay ends (default: train.num_steps)")
    cooldown_steps: Count = Field(0, description="wsd: linear decay over the last steps (arXiv:2404.06395)")
    final_fraction: Fraction = Field(0.1, description="last learning rate / peak, for cosine, linear and wsd")


# --- train, checkpoint, metrics, runtime -----------------------------------------------------------------------------


RematChoice = Literal["recompute", "save", "offload"]


class RematConfig(Section):
    """What becomes of a block's activations until its backward pass: computed again, kept, or kept in host memory.

    A block's input is always kept; what has no name here is computed again.
    """

    query: RematChoice = Field(
        "recompute", description="as attention sees it: normalised and rotated; key, value likewise"
    )
    key: RematChoice = "recompute"
    value: RematChoice = "recompute"
    attention_out: RematChoice = Field(
        "recompute", description="with attention_lse: the attention kernel runs forward once"
    )
    attention_lse: RematChoice = Field(
        "recompute", description="log sum exp of the scores, fp32, one per token and head"
    )
    mixer_out: RematChoice = Field("recompute", description="what the mixer adds to its block's input")
    mlp_hidden: RematChoice = Field("recompute", description="hidden units before the nonlinearity, or before the gate")
    mlp_gate: RematChoice = Field("recompute", description="the gate before its nonlinearity")


class TrainConfig(Section):
    """The training loop and the step."""

    num_steps: PositiveInt
    batch_size: PositiveInt = Field(description="sequences per step over the whole mesh")
    microbatches: PositiveInt = Field(1, description="gradient accumulation: pieces the batch is worked in")
    gather: Literal["layer", "microbatch", "step"] = Field(
        "layer", description="when sharded parameters are gathered: ZeRO-3, ZeRO-2, ZeRO-1 (arXiv:1910.02054)"
    )
    remat: Literal["none", "full"] | RematConfig = Field(
        "none", description="what the backward pass computes again: nothing, all within blocks, or all but the named"
    )
    offload: Annotated[tuple[Literal["optimizer", "activations"], ...], BeforeValidator(_as_tuple)] = Field(
        (), description="what lies in host memory: optimizer slots between steps, inputs of blocks until backward"
    )
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on TPU and GPU, float32 on CPU"
    )
    z_loss: Annotated[float, Field(ge=0)] = Field(0.0, description="weight of log(Z)^2 (arXiv:2204.02311)")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    loss_chunk_tokens: PositiveInt = Field(1024, description="tokens whose logits exist at once, per device")
    max_skipped_steps: PositiveInt = Field(10, description="stop after so many non-finite steps in a row")
    eval_every: Count = Field(0, description="steps between evaluations (0: only at the end)")
    eval_batches: PositiveInt = 8
    log_every: PositiveInt = 10


class CheckpointConfig(Section):
    """When to save, and what to keep."""

    every: Count = Field(100, description="steps between checkpoints (0: only at the end)")
    keep_last: PositiveInt = 3
    keep_every: PositiveInt | None = Field(None, description="also keep every checkpoint whose step is a multiple")
    allow_config_change: bool = Field(False, description="resume although settings that matter have changed")


class MetricsConfig(Section):
    """Where curves go (RUN_DIR/metrics.jsonl is always written)."""

    tensorboard: bool = True
    peak_tflops: PositiveFloat | None = Field(
        None, description="peak TFLOP/s of one device in the compute dtype, for MFU (default: a table by device kind)"
    )


class ProfileConfig(Section):
    """Steps to trace with the profiler, into RUN_DIR/profile."""

    start_step: Count
    num_steps: PositiveInt = 3


class RuntimeConfig(Section):
    """The process: seed, devices, kernels, watchdog."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    platform: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    device_count: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="fake CPU devices per process, to try a mesh on a laptop (needs platform cpu or auto)"
    )
    attention_kernel: Literal[
        "auto", "flash_tpu", "flash_hopper", "flash_triton", "splash", "cudnn", "tokamax", "chunked", "interpret"
    ] = Field(
        "auto", description="auto: the best one for platform and model; interpret: flash_tpu step by step, on a CPU"
    )
    step_timeout_seconds: PositiveFloat | None = Field(
        1800.0, description="a step longer than this ends the process with all its stacks (null: never)"
    )
    compile_cache: str | None = Field(None, description="folder of compiled programs (null: none)")
    profile: ProfileConfig | None = None


class RunConfig(Section):
    """One run, from raw text to checkpoints and curves."""

    run_dir: str
    model: ModelConfig
    mesh: MeshConfig = MeshConfig()
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    metrics: MetricsConfig = MetricsConfig()
    runtime: RuntimeConfig = RuntimeConfig()
