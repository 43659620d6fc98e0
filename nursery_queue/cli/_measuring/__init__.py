"""How fast tasks go on a server of the user's. Measures and checks; prints nothing."""
