"""Looking at a prepared corpus: what is in it, what became of each document, where a text stands."""
