"""Studies as files: systems to be compared on one data set, each a head on a cache or a whole network."""
