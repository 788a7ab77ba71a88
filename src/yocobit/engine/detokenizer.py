"""Old place of Detokenizer: `yocobit.text.detokenizer`."""

from yocobit.renamed import aliases

__getattr__ = aliases(
    __name__,
    {
        "Detokenizer": "yocobit.text.detokenizer:Detokenizer",
        "partial_match": "yocobit.text.stop_strings:partial_match",
    },
)
