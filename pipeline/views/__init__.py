"""Views, one file each: what augments training. pipeline/audio/views.py finds one by its name and seeds it."""
