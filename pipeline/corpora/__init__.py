"""Corpus adapters: one file a corpus, each with `trials(root, protocol, split)`."""
