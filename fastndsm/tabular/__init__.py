"""Tables: rows of numbers and categories in, new rows of the same table out.

    model = TabularModel.fit(frame, target="species")
    rows = model.sample(1000)
    whole = model.impute(frame_with_gaps)

pandas is needed for its frames alone; a dict of columns and an array work without it.
"""

from ._model import Candidate, TabularModel

__all__ = ["Candidate", "TabularModel"]
