import pytest
from agents import openvla_oft_cases
from agents.test_openvla_oft import check_against, result_of
from parity.test_vision import TIMM

pytestmark = pytest.mark.parity


def test_actions_loss_and_every_gradient():
    pytest.importorskip("timm", reason=TIMM)
    from parity.openvla_oft_torch import torch_result

    agent = openvla_oft_cases.make()
    check_against(torch_result(agent), result_of(agent))
