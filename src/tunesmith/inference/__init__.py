"""From a model and prompts to tokens: the engine (batches, a key-value cache) and sampling (logits to ids)."""
