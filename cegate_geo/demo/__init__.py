"""The demo: two regions made by code, adapt on one, predict the other, and a page that says what happened."""
