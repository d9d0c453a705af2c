"""`tokenizer.json` of Hugging Face: byte-pair encoding, byte-level or with byte fallback."""

from maxlm.data.tokenizers.hf.opening import open_hf_json

__all__ = ["open_hf_json"]
