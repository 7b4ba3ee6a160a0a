"""Brings stages that DVC tracks up to date, several at once, in processes that start with everything imported."""
