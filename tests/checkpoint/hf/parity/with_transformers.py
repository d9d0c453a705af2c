"""Run by test_exports.py with an interpreter that has transformers: read what maxlm wrote.

Prints a line of JSON for each folder: what is missing or unexpected in it, and the largest
difference of its logits from those of the fixture of its name, over the largest logit.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def compare(written, fixture):
    model, told = AutoModelForCausalLM.from_pretrained(
        written,
        attn_implementation="eager",
        dtype=torch.float32,
        output_loading_info=True,
        local_files_only=True,
    )
    model.eval()
    expected, worst = load_file(fixture / "expected.safetensors"), 0.0
    for name in ("short", "other", "long"):
        wanted = expected[f"logits_{name}"]
        with torch.no_grad():
            found = model(expected[f"tokens_{name}"].long()[None], use_cache=False).logits[0]
        worst = max(worst, ((found - wanted).abs().max() / wanted.abs().max()).item())
    amiss = {kind: sorted(map(str, names)) for kind, names in told.items() if names}
    return {"name": written.name, "amiss": amiss, "difference": worst}


if __name__ == "__main__":
    out, fixtures = map(Path, sys.argv[1:])
    for folder in sorted(out.iterdir()):
        print(json.dumps(compare(folder, fixtures / folder.name)), flush=True)
