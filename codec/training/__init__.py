"""Training of weights.

Configuration, loop, objective, photographs, entropy tables, importance head, the check at the end, and the card.
"""
