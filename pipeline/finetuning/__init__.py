"""XLSR trained end to end, by the loop of `training`."""
