"""What may differ when a run goes on from a checkpoint: one table, of what is fine, warned of and
refused, and why.

`scripts/write_lists.py` makes the table in docs/checkpoints.md from it.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Level(Enum):
    """What a difference does to a resume."""

    FINE = "fine"
    WARN = "warn"
    REFUSE = "refuse"


class Rule(NamedTuple):
    """A kind of difference.

    Attributes:
      what: differs.
      level: what a resume does about it.
      why: that, and not more or less.
    """

    what: str
    level: Level
    why: str


class Difference(NamedTuple):
    """Something that is not as it was when the checkpoint was saved.

    Attributes:
      rule: the key of its rule.
      text: says what was and what is, as people read it.
    """

    rule: str
    text: str

    @property
    def level(self) -> Level:
        """What a resume does about it."""
        return RULES[self.rule].level

    def __str__(self) -> str:
        return f"{self.level.value}: {self.text}"


_FINE, _WARN, _REFUSE = Level.FINE, Level.WARN, Level.REFUSE

RULES: dict[str, Rule] = {
    "settings": Rule(
        "settings that decide what is computed ([config.md](config.md#what-may-change-when-a-run-goes-on))",
        _REFUSE,
        "it would be another run",
    ),
    "rates": Rule(
        "learning rates of steps to come", _WARN, "a run is made longer so; steps done keep theirs"
    ),
    "read": Rule(
        "the mixture of rows that were read", _REFUSE, "rows would come again, others never"
    ),
    "to_come": Rule("the mixture of rows to come", _WARN, "rows that were read keep theirs"),
    "tokens": Rule(
        "tokens of the training text, by the index of each source",
        _REFUSE,
        "rows would come again, others never",
    ),
    "pages": Rule(
        "pages sampled of every shard, training and held-out, under the same index",
        _REFUSE,
        "files of other text were put in place of those that the index describes",
    ),
    "order": Rule(
        "the place in the text of each of the 32 rows read last",
        _REFUSE,
        "rows come in another order, whichever library or code has changed",
    ),
    "held_out": Rule(
        "held-out text of a source",
        _REFUSE,
        "one curve of two texts, and the new one may have been trained on",
    ),
    "held_out_gone": Rule(
        "held-out text of a source that is not there any more",
        _REFUSE,
        "its curve would end without a word",
    ),
    "held_out_new": Rule(
        "held-out text of a source that had none", _WARN, "its curve begins here; nothing else does"
    ),
    "manifest_gone": Rule(
        "a source whose `manifest.json` is not there any more",
        _WARN,
        "the tokens are the same, what they were made from is not known any more",
    ),
    "manifest": Rule(
        "another `manifest.json` beside the same tokens", _FINE, "only the tokens are learned from"
    ),
    "tokenizer": Rule("the tokenizer's contents", _REFUSE, "ids would mean other text"),
    "compute_dtype": Rule(
        "the dtype that `train.compute_dtype: auto` stands for here",
        _REFUSE,
        "losses before and after are not comparable to the bit or to 1e-5",
    ),
    "platform": Rule(
        "platform of the devices (cpu, gpu, tpu)", _WARN, "losses agree to rounding, not to the bit"
    ),
    "device_kind": Rule("kind of device", _WARN, "losses agree to rounding, not to the bit"),
    "device_count": Rule(
        "number of devices, the mesh", _FINE, "losses do not depend on them beyond 1e-5"
    ),
    "code": Rule(
        "maxlm's version or source", _WARN, "whether it computes the same is not known to the run"
    ),
    "compilers": Rule(
        "jax, jaxlib, libtpu, jax-cuda13-plugin, flax, optax",
        _WARN,
        "they decide how each step is computed",
    ),
    "libraries": Rule(
        "grain, numpy, orbax-checkpoint, tensorstore, Python, the driver",
        _FINE,
        "what they do is checked itself: the order of rows, the tokens' hash, the arrays' fingerprints",
    ),
}


def rules_table() -> str:
    """Return the table as Markdown, the strictest rules first."""
    lines = ["| what differs | then | why |", "|---|---|---|"]
    for level in (_REFUSE, _WARN, _FINE):
        same = [rule for rule in RULES.values() if rule.level is level]
        lines += [f"| {rule.what} | {level.value} | {rule.why} |" for rule in same]
    return "\n".join(lines)
