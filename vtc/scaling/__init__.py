"""The law of the error in N and V: forms, fits with status and intervals, optimum, frontier and plan.

    scores     a CSV, the paper's points, or this project's sweep -> Points
    laws       five forms, each an object whose docstring is the equation; V* derived
    varpro     variable projection, many problems at once
    fitting    one law fitted to points: quality, status, fault
    intervals  profile likelihood; for points that share an LLM; bootstraps
    frontier   V* in closed form; the best (N, V) under any cost
    checks     one row a fit, forms compared, sizes left out, separability
    plan       law + counted cost -> which N and V to deploy
    marginals  the grid predicted from two cheap curves
    seconds    what few tokens buy in seconds and memory, beside measured errors
    elsewhere  the paper's other numbers: beta by benchmark, milliseconds
    official   the published procedure re-enacted

Needs numpy, and scipy's special functions for intervals; never torch.
"""

# ruff: noqa: F401  (the names below are this package's interface)
from vtc.scaling.checks import compare, leave_one_size_out, separability, slope_by_size, slopes, summary
from vtc.scaling.fitting import Fit, fit
from vtc.scaling.frontier import Frontier, frontier, v_star, v_star_interval, words
from vtc.scaling.laws import LAWS, Law
from vtc.scaling.scores import Points, points, published, published_rows, read, sweep
