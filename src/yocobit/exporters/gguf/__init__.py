"""GGUF files, written."""
