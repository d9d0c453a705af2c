"""Every mistake in a YAML file gets a message with the setting, its value and the cure."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from maxlm.config import ConfigError, load_run

# name: (replaced text, appended text, overrides, what the message must contain)
MOE = "model.block.ffn={kind: moe, %s}"
CASES: dict[str, tuple[dict[str, str], str, list[str], list[str]]] = {
    # keys
    "misspelt key": (
        {"num_layers": "num_layer"},
        "",
        [],
        ["run.yaml:4: model.num_layer is not a known key; did you mean model.num_layers?"],
    ),
    "key of another section": (
        {"num_steps: 100": "num_steps: 100\n  learning_rate: 0.1"},
        "",
        [],
        [
            "run.yaml:15: train.learning_rate is not a known key; did you mean optimizer.learning_rate?"
        ],
    ),
    "section key at the top": (
        {},
        "num_heads: 3\n",
        [],
        ["run.yaml:16: num_heads", "did you mean model.block.mixer.num_heads?"],
    ),
    "nonsense key": (
        {},
        "zzz: 3\n",
        [],
        ["run.yaml:16: zzz is not a known key", "use one of run_dir, model, mesh"],
    ),
    "misspelt section": (
        {"train:": "trian:"},
        "",
        [],
        ["trian is not a known key; did you mean train?"],
    ),
    "missing setting": (
        {"  num_layers: 2\n": ""},
        "",
        [],
        [
            "run.yaml:2: model.num_layers is missing",
            "blocks in all segments together",
            "`num_layers: 1`",
        ],
    ),
    "missing section": (
        {"run_dir: runs/test\n": ""},
        "",
        [],
        ["run.yaml: run_dir is missing; add it: for example `run_dir: name`"],
    ),
    "duplicate key": (
        {"num_heads: 4": "num_heads: 4, num_heads: 8"},
        "",
        [],
        ["run.yaml:6: the key 'num_heads' is here twice, first at run.yaml:6; remove one"],
    ),
    # values
    "text for a number": (
        {"num_heads: 4": 'num_heads: "4"'},
        "",
        [],
        ['run.yaml:6: model.block.mixer.num_heads="4" must be a whole number; write 4'],
    ),
    "words for a number": (
        {"num_heads: 4": "num_heads: four"},
        "",
        [],
        ['model.block.mixer.num_heads="four" must be a whole number; for example 1'],
    ),
    "octal-looking number": (
        {"num_heads: 4": "num_heads: 010"},
        "",
        [],
        ['model.block.mixer.num_heads="010" must be a whole number; write 10'],
    ),
    "underscores": (
        {"num_steps: 100": "num_steps: 1_000"},
        "",
        [],
        ['train.num_steps="1_000"', "write 1000"],
    ),
    "float for a count": (
        {"num_steps: 100": "num_steps: 1e3"},
        "",
        [],
        ["train.num_steps=1000.0", "write 1000"],
    ),
    "fraction for a count": (
        {"num_steps: 100": "num_steps: 99.6"},
        "",
        [],
        ["train.num_steps=99.6", "write 100"],
    ),
    "empty value": (
        {"num_heads: 4": "num_heads:"},
        "",
        [],
        ["model.block.mixer.num_heads=null must be a whole number; give it one"],
    ),
    "empty section": (
        {},
        "optimizer:\n",
        [],
        ["run.yaml:16: optimizer=null", "remove the line for its default"],
    ),
    "section is a list": (
        {},
        "mesh: [2, 4]\n",
        [],
        ["run.yaml:16: mesh=[2, 4] must be a mapping with data, stage"],
    ),
    "yes for true": (
        {},
        "metrics: {tensorboard: yes}\n",
        [],
        ['run.yaml:16: metrics.tensorboard="yes" must be true or false; write true'],
    ),
    "off for false": (
        {},
        "metrics: {tensorboard: off}\n",
        [],
        ['tensorboard="off"', "write false"],
    ),
    "number for text": (
        {"runs/test": "12"},
        "",
        [],
        ['run.yaml:1: run_dir=12 must be text; write "12"'],
    ),
    "zero": (
        {"num_layers: 2": "num_layers: 0"},
        "",
        [],
        ["run.yaml:4: model.num_layers=0 must be at least 1; use 1"],
    ),
    "negative": (
        {},
        "optimizer: {weight_decay: -1}\n",
        [],
        ["optimizer.weight_decay=-1 must be at least 0; use 0"],
    ),
    "too large": (
        {},
        "optimizer: {beta2: 1.0}\n",
        [],
        ["optimizer.beta2=1.0 must be less than 1; for example 0.95"],
    ),
    "more than int32": (
        {"num_steps: 100": "num_steps: 3000000000"},
        "",
        [],
        [
            "train.num_steps=3000000000 must be at most 2147483647, the largest int32; use 2147483647 or less"
        ],
    ),
    "every count has a bound": (
        {"vocab_size: 512": "vocab_size: 1000000000000"},
        "optimizer: {learning_rate: 1e300}\nmesh: {data: 10000000000}\n",
        [
            "train.batch_size=1000000000000",
            "data.sequence_length=2147483648",
            "data.prefetch_batches=100000",
        ],
        [
            "model.vocab_size=1000000000000 must be at most 2147483647, the largest int32",
            "optimizer.learning_rate=1e+300 must be at most 3e+38; use 3e+38 or less",
            "train.batch_size=1000000000000 must be at most 2147483647, the largest int32",
            "data.sequence_length=2147483648 must be at most 2147483647, the largest int32",
            "data.prefetch_batches=100000 must be at most 1000; use 1000 or less",
            "mesh.data=10000000000 must be at most 1048576; use 1048576 or less",
        ],
    ),
    "layers without end": (
        {"num_layers: 2": "num_layers: 2000000000"},
        "runtime: {timeouts: {step_seconds: 1e12}}\n",
        [],
        [
            "model.num_layers=2000000000 must be at most 10000; use 10000 or less",
            "runtime.timeouts.step_seconds=1000000000000.0 must be at most 1e+08",
        ],
    ),
    "tokens of a step": (
        {"batch_size: 8": "batch_size: 2000000000"},
        "",
        [],
        [
            "train.batch_size=2000000000 * data.sequence_length=32 = 64000000000 tokens a step must be at most "
            "134217728: the bytes of their text are counted in int32; use train.batch_size=4194304 or less"
        ],
    ),
    "sequence longer than a step": (
        {"sequence_length: 32": "sequence_length: 2000000000"},
        "",
        [],
        ["use data.sequence_length=134217728 or less"],
    ),
    "far divisors": (
        {"batch_size: 8": "batch_size: 4194303\n  microbatches: 2147483647"},
        "",
        [],
        ["train.batch_size=4194303 must be divisible by train.microbatches=2147483647; use"],
    ),
    "zero byte in a path": (
        {"run_dir: runs/test": 'run_dir: "runs/a\\0b"'},
        'runtime: {compile_cache: "\\0"}\n',
        [],
        [
            "run_dir='runs/a\\x00b' has a zero byte, which no file name can have; remove it",
            "runtime.compile_cache='",
        ],
    ),
    "regular expression that no memory holds": (
        {},
        'optimizer: {overrides: [{match: "a{99999999999}"}]}\n',
        [],
        ["optimizer.overrides.0.match='a{99999999999}' is not a regular expression"],
    ),
    "nan": (
        {},
        "optimizer: {learning_rate: .nan}\n",
        [],
        ["learning_rate=NaN must be a finite number; for example"],
    ),
    "infinite": (
        {},
        "optimizer: {learning_rate: 1e999}\n",
        [],
        ["learning_rate=Infinity must be a finite number"],
    ),
    "misspelt choice": (
        {},
        "schedule: {kind: cosin}\n",
        [],
        [
            'schedule.kind="cosin" is not one of cosine, linear, wsd, constant, inverse_sqrt; did you mean cosine?'
        ],
    ),
    "unknown choice": (
        {},
        "schedule: {kind: step}\n",
        [],
        ['schedule.kind="step" is not one of', "for example cosine"],
    ),
    "only choice": (
        {},
        "optimizer: {kind: sgd}\n",
        [],
        ['optimizer.kind="sgd" is not known here; use adamw'],
    ),
    "union kind": (
        {"head_dim: 16": "head_dim: 16, position: {kind: spiral}"},
        "",
        [],
        [
            'run.yaml:6: model.block.mixer.position.kind="spiral" is not one of rope, alibi, relative, none'
        ],
    ),
    "union without kind": (
        {"head_dim: 16": "head_dim: 16, position: {theta: 1.0}"},
        "",
        [],
        [
            "run.yaml:6: model.block.mixer.position.kind is missing; add one of rope, alibi, relative, none"
        ],
    ),
    "key of another kind": (
        {"head_dim: 16": "head_dim: 16, position: {kind: none, theta: 1.0}"},
        "",
        [],
        [
            "position.theta is not a known key of this kind, but of another; remove it, or use one of kind"
        ],
    ),
    "remat word": (
        {},
        "",
        ["train.remat=ful"],
        [
            'train.remat="ful" is not one of none, full, a mapping; did you mean full?',
        ],
    ),
    "remat name": (
        {},
        "",
        ["train.remat={query: save, keys: save}"],
        ["train.remat.keys is no activation of this model's layers; did you mean key?"],
    ),
    "remat choice": (
        {},
        "",
        ["train.remat={query: offlod}"],
        [
            'train.remat.query="offlod" is not one of recompute, save, offload; did you mean offload?'
        ],
    ),
    "offload without remat": (
        {},
        "",
        ["train.offload=[activations]"],
        [
            "train.offload=[activations] moves the inputs of blocks, but train.remat=none",
            "use train.remat=full",
        ],
    ),
    "offload word": (
        {},
        "",
        ["train.offload=[optimiser]"],
        [
            'train.offload.0="optimiser" is not one of optimizer, activations; did you mean optimizer?'
        ],
    ),
    "remat list": (
        {},
        "",
        ["train.remat=[query]"],
        ['train.remat=["query"] must be none, full or a mapping'],
    ),
    "value for a list": (
        {"{path: data/text}": "{path: data/text, raw: {kind: files, paths: data/raw}}"},
        "",
        [],
        ['data.sources.text.raw.paths="data/raw" must be a list; write [data/raw]'],
    ),
    "source name": (
        {"text: {path": "my text: {path"},
        "",
        [],
        ["run.yaml:10: data.sources.my text has a name with other signs", "call it 'my_text'"],
    ),
    "no sources": (
        {"\n    text: {path: data/text}": " {}"},
        "",
        [],
        ["data.sources={} must not be empty; give at least"],
    ),
    "the only entry": (
        {},
        "",
        ["data.pipeline.steps=[{kind: heuristics, rules: [gopher]}]"],
        [
            "1 problem in",
            'rules.0.kind="gopher" is not one of',
            "did you mean gopher_repetition or gopher_quality?",
        ],
    ),
    # several settings
    "heads on tensor": (
        {"num_heads: 4, head_dim: 16": "num_heads: 30, num_kv_heads: 6, head_dim: 2"},
        "mesh: {tensor: 4}\n",
        [],
        [
            "run.yaml:6: model.block.mixer.num_heads=30 must be divisible by mesh.tensor=4; "
            "use model.block.mixer.num_heads=28 or 32, or mesh.tensor=3 or 5",
            "run.yaml:6: model.block.mixer.num_kv_heads=6 must be divisible by mesh.tensor=4; "
            "use model.block.mixer.num_kv_heads=4 or 8, or mesh.tensor=3 or 6",
        ],
    ),
    "hidden units on tensor": (
        {"hidden_dim: 128": "hidden_dim: 129"},
        "mesh: {tensor: 2}\n",
        [],
        [
            "run.yaml:7: model.block.ffn.hidden_dim=129 must be divisible by mesh.tensor=2; "
            "use model.block.ffn.hidden_dim=128 or 130, or mesh.tensor=1 or 3"
        ],
    ),
    "vocabulary on tensor": (
        {"vocab_size: 512": "vocab_size: 50257"},
        "mesh: {tensor: 4}\n",
        [],
        [
            "model.vocab_size=50257 must be divisible by mesh.tensor=4; use model.vocab_size=50256 or 50260"
        ],
    ),
    "width on fsdp": (
        {"embed_dim: 64": "embed_dim: 60"},
        "mesh: {fsdp: 8}\n",
        [],
        [
            "model.embed_dim=60 must be divisible by mesh.fsdp=8; use model.embed_dim=56 or 64, or mesh.fsdp=6 or 10"
        ],
    ),
    "batch on the mesh": (
        {"batch_size: 8": "batch_size: 12\n  microbatches: 2"},
        "mesh: {data: 2, fsdp: 2}\n",
        [],
        [
            "train.batch_size=12 must be divisible by mesh.data=2 * mesh.fsdp=2 * train.microbatches=2 = 8; "
            "use train.batch_size=8 or 16, or mesh.data=1 or 3, or mesh.fsdp=1 or 3, or train.microbatches=1 or 3"
        ],
    ),
    "sequence on tensor": (
        {"sequence_length: 32": "sequence_length: 30"},
        "mesh: {tensor: 4}\n",
        [],
        [
            "data.sequence_length=30 must be divisible by mesh.tensor=4; use data.sequence_length=28 or 32"
        ],
    ),
    "fewer layers than stages": (
        {"num_layers: 2": "num_layers: 6"},
        "mesh: {stage: 4, stage_repeats: 2}\n",
        ["train.microbatches=4"],
        [
            "mesh.stage=4 * mesh.stage_repeats=2 = 8 is more than the 6 layers, of which each stage needs one; "
            "use mesh.stage=3 or less"
        ],
    ),
    "a block of modules that does not fit": (
        {
            "num_layers: 2": "num_layers: 2\n  mtp: {depth: 1, block: {norms: post, residual: parallel_one_norm}}"
        },
        "",
        [],
        ["model.mtp.block.residual=parallel_one_norm shares the norm before mixer and ffn"],
    ),
    "fewer patterns than stages": (
        {"num_layers: 2": "num_layers: 6\n  segments: [{pattern: [{repeat: 2}, {}]}]"},
        "mesh: {stage: 4}\n",
        [],
        [
            "mesh.stage=4 is more than the 2 repetitions of the patterns in model.segments, of which each stage needs"
        ],
    ),
    "microbatches that interleaved stages do not divide": (
        {"num_layers: 2": "num_layers: 4"},
        "mesh: {stage: 2, stage_repeats: 2}\n",
        ["train.microbatches=1"],
        ["train.microbatches=1 must be divisible by mesh.stage=2"],
    ),
    "repeats without stages": (
        {},
        "mesh: {stage_repeats: 2}\n",
        [],
        ["mesh.stage_repeats=2 needs mesh.stage"],
    ),
    "sequence in two chunks per device": (
        {"sequence_length: 32": "sequence_length: 36"},
        "mesh: {context: 4}\n",
        [],
        [
            "data.sequence_length=36 must be divisible by 2 * mesh.context=4 = 8; "
            "use data.sequence_length=32 or 40, or mesh.context=3 or 6"
        ],
    ),
    "sequence on context and tensor": (
        {"sequence_length: 32": "sequence_length: 36"},
        "mesh: {context: 4, tensor: 2}\n",
        [],
        [
            "must be divisible by mesh.context=4 * mesh.tensor=2 = 8; use data.sequence_length=32 or 40"
        ],
    ),
    "heads exchanged for sequence": (
        {"num_heads: 4": "num_heads: 8, num_kv_heads: 2"},
        "mesh: {context: 4, tensor: 2, context_kind: ulysses}\n",
        [],
        [
            "model.block.mixer.num_kv_heads=2 must be divisible by mesh.tensor=2 * mesh.context=4 = 8; "
            "use model.block.mixer.num_kv_heads=8, or mesh.context=1, or mesh.context_kind=ring, which does not",
        ],
    ),
    "an activation of two forms": (
        {"hidden_dim: 128": "hidden_dim: 128, activation: gelu"},
        "",
        [],
        [
            'model.block.ffn.activation="gelu" is not one of',
            "did you mean gelu_tanh or gelu_exact?",
        ],
    ),
    "a gated activation of two forms": (
        {},
        "",
        ["model.block.ffn.activation=geglu"],
        ["did you mean geglu_tanh or geglu_exact?"],
    ),
    "one norm where there is none": (
        {},
        "",
        ["model.block.norms=post", "model.block.residual=parallel_one_norm"],
        [
            "model.block.residual=parallel_one_norm shares the norm before mixer and ffn, but model.block.norms=post "
            "has none; use model.block.residual=parallel, or model.block.norms=sandwich",
            "1 problem",
        ],
    ),
    "one norm where there is none, in a pattern": (
        {},
        "",
        [
            "model.block.norms=post",
            "model.segments=[{pattern: [{}, {residual: parallel_one_norm}]}]",
        ],
        ["model.segments.0.pattern.1.residual=parallel_one_norm shares", "1 problem"],
    ),
    "a cap below nothing": (
        {},
        "",
        ["model.logit_softcap=0.0", "model.residual_scale=-1.0"],
        [
            "model.logit_softcap=0.0 must be more than 0",
            "model.residual_scale=-1.0 must be more than 0",
        ],
    ),
    "gate of no shared expert": (
        {},
        "",
        [MOE % "num_experts: 4, experts_per_token: 2, expert_dim: 32, shared_gate: true"],
        [
            "model.block.ffn.shared_gate=true has no shared experts to multiply: model.block.ffn.shared_dim=0; "
            "use model.block.ffn.shared_gate=false, or model.block.ffn.shared_dim=32"
        ],
    ),
    "experts on mesh": (
        {},
        "mesh: {expert: 4}\n",
        [
            MOE % "num_experts: 6, experts_per_token: 2, expert_dim: 30, shared_dim: 30",
            "mesh.tensor=4",
        ],
        [
            "model.block.ffn.num_experts=6 must be divisible by mesh.expert=4; use "
            "model.block.ffn.num_experts=4 or 8, or mesh.expert=3 or 6",
            "model.block.ffn.expert_dim=30 must be divisible by mesh.tensor=4",
            "model.block.ffn.shared_dim=30 must be divisible by mesh.tensor=4",
        ],
    ),
    "more choices than experts": (
        {},
        "",
        [MOE % "num_experts: 4, experts_per_token: 5, expert_dim: 32"],
        ["model.block.ffn.experts_per_token=5 is more than model.block.ffn.num_experts=4"],
    ),
    "capacity without effect": (
        {},
        "",
        [MOE % "num_experts: 8, experts_per_token: 2, expert_dim: 32, capacity_factor: 4.0"],
        [
            "capacity_factor=4.0: an expert would take every token of a sequence; use less than num_experts / ",
            "= 4, or",
        ],
    ),
    "uneven groups": (
        {},
        "",
        [
            MOE
            % "num_experts: 8, experts_per_token: 2, expert_dim: 32, router: {num_groups: 3, top_groups: 4}"
        ],
        [
            "ffn.num_experts=8 must be divisible by model.block.ffn.router.num_groups=3",
            "top_groups=4 is more than",
        ],
    ),
    "too few groups": (
        {},
        "",
        [
            MOE
            % "num_experts: 8, experts_per_token: 3, expert_dim: 32, router: {num_groups: 4, top_groups: 1}"
        ],
        [
            "router.top_groups=1 groups of 2 experts are fewer than model.block.ffn.experts_per_token=3; use "
        ],
    ),
    "two open segments": (
        {},
        "",
        ["model.segments=[{}, {pattern: [{}]}]"],
        [
            "model.segments.0 and model.segments.1 have no repeat, and only one segment can take the layers left over; "
            "give model.segments.1.repeat"
        ],
    ),
    "segments that are too short": (
        {},
        "",
        ["model.segments=[{repeat: 1}]"],
        [
            "model.num_layers=2, but model.segments make 1 blocks; use model.num_layers=1, or other repeats"
        ],
    ),
    "nothing left for a segment": (
        {},
        "",
        ["model.segments=[{repeat: 1, pattern: [{repeat: 2}]}, {}]"],
        [
            "model.num_layers=2 must be the 2 blocks of the other segments and a multiple of the number of blocks in "
            "model.segments.1.pattern, 1; use model.num_layers=3 or 4"
        ],
    ),
    "no segments": (
        {},
        "",
        ["model.segments=[]"],
        ["model.segments=[] must not be empty; use [{pattern: [{}]}]"],
    ),
    "empty pattern": (
        {},
        "",
        ["model.segments=[{pattern: []}]"],
        ["model.segments.0.pattern=[] must not be empty; use [{}], a block like model.block"],
    ),
    "one mixer in parallel": (
        {},
        "",
        [
            "model.block.mixer={kind: parallel, mixers: [{kind: attention, num_heads: 4, head_dim: 15}]}"
        ],
        ["model.block.mixer.mixers"],
    ),
    "a mixer in parallel": (
        {},
        "",
        [
            "model.block.mixer={kind: parallel, mixers: [{kind: none}, {kind: attention, num_heads: 4, head_dim: 15}]}"
        ],
        [
            "model.block.mixer.mixers.1.head_dim=15 must be even for model.block.mixer.mixers.1.position.kind=rope"
        ],
    ),
    "axis of zero": (
        {},
        "mesh: {tensor: 0}\n",
        [],
        ["mesh.tensor=0 must be at least 1, or -1 for the devices left over"],
    ),
    "two fills": (
        {},
        "mesh: {data: -1}\n",
        [],
        ["mesh.data=-1 and mesh.fsdp=-1: only one axis", "use mesh.fsdp=1"],
    ),
    "mesh on fake devices": (
        {},
        "mesh: {data: 2, fsdp: 1, tensor: 3}\nruntime: {device_count: 8}\n",
        [],
        [
            "mesh: mesh.data=2 * mesh.tensor=3 = 6 must equal the device count, 8",
            "runtime.device_count=6",
        ],
    ),
    "fake devices on a tpu": (
        {},
        "runtime: {device_count: 8, platform: tpu}\n",
        [],
        [
            "runtime.device_count=8 makes fake CPU devices, but runtime.platform=tpu; use runtime.device_count=null"
        ],
    ),
    "pattern": (
        {"num_layers: 2": "num_layers: 3\n  segments: [{pattern: [{}, {}]}]"},
        "",
        [],
        [
            "model.num_layers=3 must be divisible by the number of blocks in model.segments.0.pattern=2; "
            "use model.num_layers=2 or 4"
        ],
    ),
    "kv heads": (
        {"num_heads: 4": "num_heads: 4, num_kv_heads: 3"},
        "",
        [],
        [
            "model.block.mixer.num_heads=4 must be divisible by model.block.mixer.num_kv_heads=3; "
            "use model.block.mixer.num_heads=3 or 6"
        ],
    ),
    "odd rope": (
        {"head_dim: 16": "head_dim: 15"},
        "",
        [],
        [
            "model.block.mixer.head_dim=15 must be even for model.block.mixer.position.kind=rope; use 14 or 16"
        ],
    ),
    "learned positions": (
        {"hidden_dim: 128}}": "hidden_dim: 128}}\n  position: {kind: learned, max_length: 16}"},
        "",
        [],
        [
            "run.yaml:8: model.position.max_length=16 is less than data.sequence_length=32; "
            "use model.position.max_length=32, or data.sequence_length=16"
        ],
    ),
    "rope scaling": (
        {
            "head_dim: 16": "head_dim: 16, position: {kind: rope, scaling: {kind: llama3, low_frequency_factor: 4.0}}"
        },
        "",
        [],
        [
            "low_frequency_factor=4.0 must be less than",
            "high_frequency_factor=4.0; use 1.0 and 4.0",
        ],
    ),
    "half of a rotation": (
        {"head_dim: 16": "head_dim: 16, position: {kind: rope, rotary_dim: 5}"},
        "",
        [],
        [
            "model.block.mixer.position.rotary_dim=5 must be even and at most model.block.mixer.head_dim=16; use 4"
        ],
    ),
    "more than a head is rotated": (
        {"head_dim: 16": "head_dim: 16, position: {kind: rope, rotary_dim: 40}"},
        "",
        [],
        ["position.rotary_dim=40 must be even and at most model.block.mixer.head_dim=16; use 16"],
    ),
    "factors for each pair": (
        {
            "head_dim: 16": "head_dim: 16, position: {kind: rope, scaling: {kind: longrope, factor: 2.0, "
            "original_length: 16, short_factor: [1.0], long_factor: [1, 1, 1, 1, 1, 1, 1, 1]}}"
        },
        "",
        [],
        ["position.scaling.short_factor has 1 numbers and must have 8, one for each pair"],
    ),
    "half of a ratio": (
        {
            "head_dim: 16": "head_dim: 16, position: {kind: rope, scaling: {kind: yarn, factor: 2.0, "
            "original_length: 16, mscale: 0.7, beta_slow: 40.0}}"
        },
        "",
        [],
        [
            "scaling.beta_slow=40.0 must not be greater than model.block.mixer.position.scaling.beta_fast=32.0",
            "scaling.mscale=0.7 means nothing without model.block.mixer.position.scaling.mscale_all_dim",
        ],
    ),
    "theta without turns": (
        {
            "head_dim: 16": "head_dim: 16, position: {kind: rope, theta: 1.0, scaling: {kind: yarn, factor: 2.0, "
            "original_length: 16}}"
        },
        "",
        [],
        ["position.theta=1.0 must be above 1 for model.block.mixer.position.scaling.kind=yarn"],
    ),
    "one frequency": (
        {
            "head_dim: 16": "head_dim: 16, position: {kind: rope, rotary_dim: 2, scaling: {kind: ntk, factor: 2.0}}"
        },
        "",
        [],
        ["position.scaling.kind=ntk needs more than the one frequency of 2 turned numbers"],
    ),
    "a factor that shrinks": (
        {
            "head_dim: 16": "head_dim: 16, position: {kind: rope, scaling: {kind: linear, factor: 0.5}}"
        },
        "",
        [],
        ["position.scaling.factor=0.5"],
    ),
    "distances": (
        {"head_dim: 16": "head_dim: 16, position: {kind: relative, max_distance: 16}"},
        "",
        [],
        ["position.max_distance=16 must be above the 16 distances that have a bucket of their own"],
    ),
    "capped distances": (
        {"head_dim: 16": "head_dim: 16, softcap: 5.0, position: {kind: alibi}"},
        "",
        [],
        [
            "mixer.softcap=5.0 would squash what model.block.mixer.position.kind=alibi adds to scores"
        ],
    ),
    "odd sinusoids": (
        {
            "hidden_dim: 128}}": "hidden_dim: 128}}\n  position: {kind: sinusoidal}",
            "embed_dim: 64": "embed_dim: 63",
        },
        "",
        [],
        [
            "model.embed_dim=63 must be even for model.position.kind=sinusoidal; use 64",
        ],
    ),
    "warm-up": (
        {},
        "schedule: {warmup_steps: 100}\n",
        [],
        [
            "schedule.warmup_steps=100 must be less than train.num_steps=100; use schedule.warmup_steps=10"
        ],
    ),
    "cooldown": (
        {},
        "schedule: {kind: wsd, warmup_steps: 60, cooldown_steps: 50, total_steps: 90}\n",
        [],
        [
            "schedule.cooldown_steps=50 is more than schedule.total_steps=90; use schedule.cooldown_steps=30 or less"
        ],
    ),
    "wsd without cooldown": (
        {},
        "schedule: {kind: wsd}\n",
        [],
        ["use schedule.cooldown_steps=20, or kind: constant"],
    ),
    "cooldown without wsd": (
        {},
        "schedule: {cooldown_steps: 5}\n",
        [],
        [
            "schedule.cooldown_steps=5 is for schedule.kind=wsd, not cosine; use schedule.kind=wsd, or remove it"
        ],
    ),
    "inverse root": (
        {},
        "schedule: {kind: inverse_sqrt}\n",
        [],
        ["schedule.kind=inverse_sqrt", "warmup_steps=10"],
    ),
    "override pattern": (
        {},
        "optimizer: {overrides: [{match: norm}, {match: '*['}]}\n",
        [],
        [
            "optimizer.overrides.1.match='*[' is not a regular expression: nothing to repeat at position 0"
        ],
    ),
    "keep every": (
        {},
        "checkpoint: {every: 100, keep_every: 250}\n",
        [],
        [
            "checkpoint.keep_every=250 must be divisible by checkpoint.every=100; use checkpoint.keep_every=200 or 300"
        ],
    ),
    "keep nothing": (
        {},
        "checkpoint: {every: 0, keep_every: 250}\n",
        [],
        ["use checkpoint.every=250, or remove it"],
    ),
    "late profile": (
        {},
        "runtime: {profile: {start_step: 99}}\n",
        [],
        [
            "start_step=99 + num_steps=3 is after the last step, train.num_steps=100; use runtime.profile.start_step=97"
        ],
    ),
    "files without paths": (
        {"{path: data/text}": "{path: data/text, raw: {kind: files}}"},
        "",
        [],
        [
            "data.sources.text.raw.kind=files needs data.sources.text.raw.paths; give a list such as [data/raw]"
        ],
    ),
    "paths without files": (
        {"{path: data/text}": "{path: data/text, raw: {kind: python_stdlib, paths: [x]}}"},
        "",
        [],
        [
            "data.sources.text.raw.paths is not used by data.sources.text.raw.kind=python_stdlib; remove it"
        ],
    ),
    "one folder twice": (
        {"text: {path: data/text}": "text: {path: data/text}\n    more: {path: data/text}"},
        "",
        [],
        ["run.yaml:11: data.sources.more.path='data/text' is the folder of data.sources.text too"],
    ),
    "one folder in two spellings": (
        {"text: {path: data/text}": "text: {path: data/text}\n    more: {path: ./data/x/../text/}"},
        "",
        [],
        [
            "run.yaml:11: data.sources.more.path='./data/x/../text/' is the folder of data.sources.text too"
        ],
    ),
    "a tokenizer in the run's own place": (
        {},
        "",
        ["data.tokenizer=runs/x/../test/tokenizer/t"],
        [
            "data.tokenizer='runs/x/../test/tokenizer/t' is where the run keeps its own copy of the tokenizer; use"
        ],
    ),
    "empty path": (
        {"runs/test": "''"},
        "",
        [],
        ['run.yaml:1: run_dir="" is empty; give a path such as runs/name'],
    ),
    # overrides
    "override without value": (
        {},
        "",
        ["mesh.tensor"],
        ["'mesh.tensor' is not an override; write key.path=value"],
    ),
    "override with nothing": (
        {},
        "",
        ["mesh.tensor="],
        ["'mesh.tensor=' has no value; write mesh.tensor=null"],
    ),
    "override of include": ({}, "", ["include=x.yaml"], ["include cannot be overridden"]),
    "override of a misspelt key": (
        {},
        "",
        ["mesh.tenor=2"],
        ["command line: mesh.tenor", "did you mean mesh.tensor?"],
    ),
    "override below a value": (
        {},
        "",
        ["train.num_steps.x=2"],
        [
            "train.num_steps.x: train.num_steps is 100 (run.yaml:14) and has no keys; set train.num_steps={x: ...}"
        ],
    ),
    "override beyond a list": (
        {"hidden_dim: 128}}": "hidden_dim: 128}}\n  segments: [{}]"},
        "",
        ["model.segments.1.repeat=2"],
        [
            "model.segments.1.repeat: model.segments is a list of 1 (run.yaml:8); use model.segments.0 to "
            "model.segments.0"
        ],
    ),
    "override in an absent list": (
        {},
        "",
        ["optimizer.overrides.0.match=x"],
        ["optimizer.overrides is not in the file; set the whole list, optimizer.overrides=[...]"],
    ),
    "override that is no YAML": (
        {},
        "",
        ["run_dir=[x"],
        ["command line (run_dir): not valid YAML", "check quotes"],
    ),
    "override of two lines": (
        {},
        "",
        ["run_dir=a: b"],
        ["command line (run_dir): 'a: b' is not a single value"],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_message_names_setting_value_and_cure(
    case: tuple[dict[str, str], str, list[str], list[str]], write_run: Callable[..., str]
) -> None:
    replace, append, overrides, expected = case
    with pytest.raises(ConfigError) as caught:
        load_run(write_run(replace, append), overrides)
    for text in expected:
        assert text in str(caught.value)


def test_small_run_is_valid(write_run: Callable[..., str]) -> None:
    assert load_run(write_run()).config.model.layers[1].mixer.num_kv_heads == 4


def test_all_problems_at_once_each_once(write_run: Callable[..., str]) -> None:
    replace = {"num_heads: 4": "num_head: 4", "batch_size: 8": "batch_size: 9", "runs/test": "3"}
    with pytest.raises(ConfigError) as caught:
        load_run(write_run(replace, "mesh: {data: 2, fsdp: 1, expert: 2}\n"), ["runtime.seed=-1"])
    assert [problem.path for problem in caught.value.problems] == [
        "run_dir",
        "model.block.mixer.num_heads",
        "model.block.mixer.num_head",
        "runtime.seed",
        "train.batch_size",
    ]
    assert str(caught.value).startswith("5 problems in run.yaml:\n")


def test_no_message_shows_the_machinery(write_run: Callable[..., str]) -> None:
    for replace, append, overrides, _ in CASES.values():
        with pytest.raises(ConfigError) as caught:
            load_run(write_run(replace, append), overrides)
        for word in (
            "pydantic",
            "Input should",
            "literal[",
            "RematConfig",
            "RopePosition",
            "default_factory",
        ):
            assert word not in str(caught.value)
