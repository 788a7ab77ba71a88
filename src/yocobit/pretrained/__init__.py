"""Packed models in the package, for use without training."""

from pathlib import Path

TINY = Path(__file__).parent / "tiny"

# What chats say first, and messages to try.
ABOUT_TINY = "A toy of 7 million parameters that continues speeches and sermons. It knows no facts."
PROMPTS_OF_TINY = (
    "Tell me about the sea.",
    "Speak about peace.",
    "What can you say about prayer?",
)
