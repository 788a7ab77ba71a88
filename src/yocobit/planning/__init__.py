"""Plans: memory placement and roofline of a model, on this host or on a data sheet's machine.

Never imports torch; imports matplotlib only for pictures.
"""

from yocobit.hardware.datasheets import NAMED, Machine
from yocobit.planning.picture import draw_plan
from yocobit.planning.plan import Plan, PlanRequest, make_plan, open_shape
from yocobit.planning.report import print_plan
from yocobit.renamed import aliases

__all__ = [
    "NAMED",
    "Machine",
    "Plan",
    "PlanRequest",
    "draw_plan",
    "make_plan",
    "open_shape",
    "print_plan",
]

__getattr__ = aliases(__name__, {"Request": "yocobit.planning.plan:PlanRequest"})
