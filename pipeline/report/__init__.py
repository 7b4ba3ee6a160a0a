"""Curves, the leaderboard and the page that shows them."""
