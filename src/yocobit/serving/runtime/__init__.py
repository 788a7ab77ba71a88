"""Running requests: scheduler, sequences, prefix cache, structured output, metrics."""
