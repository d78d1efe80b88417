"""Images: where they come from, their fixed order, classes and splits, and how bytes become RGB pixels."""
