"""Supervised models of fastText (arXiv:1607.01759), read from their `.bin` files."""
