"""Weights in fewer bits: schemes as pure functions, and the tensor that holds their result."""
