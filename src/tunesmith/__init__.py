"""tunesmith: fine-tune language models on your own data, full or LoRA, and measure what they learned."""

__version__ = "0.1.0"
