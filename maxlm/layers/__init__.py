"""Flax NNX modules, one layer a file.

Everything here is what one device holds, inside the shard_map.

Shape letters, local sizes: B batch, T query length, S key length, D embed, F hidden, N query heads,
K kv heads, G = N / K, H head dim, V vocab, E experts, A experts per token, C capacity, L layers, M
microbatches.
"""
