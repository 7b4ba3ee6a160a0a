"""XLSR and its kin: from windows of samples to layer features."""
