"""N-gram language models with modified Kneser-Ney smoothing: counting beyond memory, files, perplexities."""
