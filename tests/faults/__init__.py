"""The promises of the store and the heads, tried by fault: see docs/reliability.md.

FEATCACHE_FAULTS=fast (the default) or full says how many trials there are, FEATCACHE_FAULTS_SEED what chance
draws, and FEATCACHE_FAULTS_TABLE names a file that the table of results is written to.
FEATCACHE_FAULTS_PART=3/16 does the third of sixteen parts; `python -m tests.faults.run --jobs 16` does all
parts of everything at once.
"""
