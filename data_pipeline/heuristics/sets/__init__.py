"""Published sets of rules, one file each, and the table that finds a set by its section's kind."""

from __future__ import annotations

from data_pipeline.heuristics.rules import Rules
from data_pipeline.heuristics.sets.c4 import C4
from data_pipeline.heuristics.sets.fineweb import Fineweb
from data_pipeline.heuristics.sets.gopher_quality import GopherQuality
from data_pipeline.heuristics.sets.gopher_repetition import GopherRepetition
from data_pipeline.heuristics.sets.redpajama_code import RedpajamaCode
from data_pipeline.heuristics.sets.refinedweb import Refinedweb
from data_pipeline.heuristics.sets.starcoder import Starcoder

RULE_SETS: dict[str, type[Rules]] = {
    "gopher_repetition": GopherRepetition,
    "gopher_quality": GopherQuality,
    "c4": C4,
    "fineweb": Fineweb,
    "refinedweb": Refinedweb,
    "redpajama_code": RedpajamaCode,
    "starcoder": Starcoder,
}
