"""How good the answers are: metrics over text, and the scores of a model that gave it."""
