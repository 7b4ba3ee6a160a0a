"""Stage one: making feature stores, and looking after them."""
