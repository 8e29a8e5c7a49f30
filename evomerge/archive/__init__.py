"""The archive of a campaign: one SQLite file, what is asked of it, and who may write it.

archive        writes it: every ask and every outcome, in order
reader         reads it, by named queries
ledger         the queries about candidates and events
front          keeps up the Pareto front
records        what reading gives: candidates, events, rows
stored_recipe  a recipe as columns
schema         its tables
database       the file, opened; the one place that knows SQLite
selection      one candidate of many: the best, the knee, the finalists
summary        what `status`, `front` and `show` print, as data
history        the whole of it at once, for pictures
references     candidates of other runs by name, RUN#NUMBER
run_lock       one campaign at a time in a run's directory
"""
