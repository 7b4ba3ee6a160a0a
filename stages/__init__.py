"""The stages of the flow: parse arguments, call `pipeline`, save."""

import gc

# Importing torch makes hundreds of thousands of objects that all stay; looking through them again and again for
# garbage is a fifth of the import (bench/ablation.py shows what a cell costs). Collect seldom.
gc.set_threshold(100_000, 50, 100)
