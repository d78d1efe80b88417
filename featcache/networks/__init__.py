"""Small networks that are trained from scratch: each one idea, in plain torch."""
