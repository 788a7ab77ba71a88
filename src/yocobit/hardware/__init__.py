"""The machine: its CPU, caches and memory, measured limits, and data sheets of others."""
