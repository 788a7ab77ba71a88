"""Data: text -> documents -> tokens -> shards -> windows, without torch."""
