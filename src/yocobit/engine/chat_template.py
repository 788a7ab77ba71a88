"""Old place of ChatTemplate: `yocobit.text.chat_template`."""

from yocobit.renamed import aliases

__getattr__ = aliases(__name__, {"ChatTemplate": "yocobit.text.chat_template:ChatTemplate"})
