"""Data: files -> documents -> tokens -> windows. Without torch."""
