"""Steps that judge a document by itself."""
