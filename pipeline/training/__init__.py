"""Stage two: a backend and a loss trained on cached features."""
