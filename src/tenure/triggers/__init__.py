"""What begins work by itself: schedules.

times.py      when a schedule is due: pure, with the clock as an argument
schedule.py   a schedule and its firings, and which due times are fired: pure
actions.py    what a firing begins, by kind; where others register theirs
goals.py      the kind "goal": a run
store.py      the rows
schedules.py  the service and the chore that fires
"""
