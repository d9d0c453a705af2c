"""Files between tasks: documents, arrays of numbers, and what becomes of documents that are dropped."""
