"""Estimators of an utterance's quality as a MOS: one file each, found by its name."""
