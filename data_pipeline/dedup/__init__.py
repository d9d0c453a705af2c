"""Repeated text: copies of documents and of parts of them, nearly equal documents, repeated
passages, evaluation data.
"""
