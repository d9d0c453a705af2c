"""Steps that change what a document says."""
