"""Published checkpoints in Hugging Face directories."""
