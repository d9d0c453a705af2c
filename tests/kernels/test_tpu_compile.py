"""The TPU kernels compile ahead of time for every generation, within its vector memory, without a TPU."""

import dataclasses
import functools
import importlib.util
import os
import subprocess
import sys

import pytest

GENERATIONS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the TPU's compiler"),
]
