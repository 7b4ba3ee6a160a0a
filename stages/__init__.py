"""The stages of the flow: parse arguments, call `pipeline`, save."""
