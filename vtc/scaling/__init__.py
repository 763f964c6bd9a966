"""The law of the error in N and V: forms, fits with status and intervals, optimum and frontier.

    scores    a CSV, the paper's points, or this project's sweep -> Points
    laws      five forms, each an object whose docstring is the equation
    varpro    variable projection, many problems at once
    fitting   one law fitted to points: status, profile likelihood, bootstrap
    frontier  V* in closed form; the best (N, V) under any cost
    checks    sizes left out, separability, forms compared, one row a fit
    official  the published procedure re-enacted

Needs numpy, and scipy where a fit is finished; never torch.
"""

from vtc.scaling.checks import compare, leave_one_size_out, separability, summary
from vtc.scaling.fitting import Fit, fit
from vtc.scaling.frontier import Frontier, frontier, undominated, v_star, v_star_interval, words
from vtc.scaling.laws import LAWS, Law
from vtc.scaling.scores import Points, points, published, published_rows, read, sweep

__all__ = [
    "LAWS",
    "Fit",
    "Frontier",
    "Law",
    "Points",
    "compare",
    "fit",
    "frontier",
    "leave_one_size_out",
    "points",
    "published",
    "published_rows",
    "read",
    "separability",
    "summary",
    "sweep",
    "undominated",
    "v_star",
    "v_star_interval",
    "words",
]
