"""Steps that find text which is there already: in the corpus, in an earlier one, in evaluation
data.
"""
