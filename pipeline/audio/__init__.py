"""From a file to the window of samples that the encoder hears."""
