"""Near copies: min-hash signatures, the clusters that their bands link, and the exact similarity
that decides.
"""
