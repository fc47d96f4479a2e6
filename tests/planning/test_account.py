"""The account of tensors: what is alive, what was at the peak, and of which kind."""

import torch

from tunesmith.planning.account import Account, Event, peaks


def test_a_tensor_counts_from_its_making_until_it_is_freed():
    with Account() as account:
        a = torch.zeros(1000)  # 4,000 bytes
        b = a + 1
        assert account.live_bytes == 8000
        del a
        assert account.live_bytes == 4000
        del b
    assert account.live_bytes == 0
    assert account.peak_bytes == 8000


def test_views_and_work_in_place_add_nothing():
    with Account() as account:
        a = torch.zeros(1000)
        a[10:20].mul_(2)
        b = a.view(10, 100).T
        assert account.live_bytes == 4000
        del a
        assert account.live_bytes == 4000  # the view holds it
        del b
        assert account.live_bytes == 0


def test_tensors_that_were_there_before_count_from_their_first_use():
    weight = torch.zeros(10, 10)
    with Account() as account:
        assert account.live_bytes == 0
        y = weight @ weight
        assert account.live_bytes == 800
    del y


def test_what_autograd_keeps_for_the_backward_pass_is_alive():
    weight = torch.ones(100, 100, requires_grad=True)
    with Account() as account:
        y = torch.ones(100, 100).mm(weight).exp().sum()
        held = account.live_bytes
        y.backward()
        assert held >= 3 * 40_000  # the weight, the input of the product and the output of exp, none of which has a name here
        assert account.live_bytes < held


def test_peaks_are_those_of_each_phase_by_kind():
    #                storage  bytes  phase
    events = [Event(1, 10, ""), Event(2, 5, "forward"), Event(3, 7, "forward"), Event(3, -7, "backward"), Event(4, 1, "backward")]
    found = peaks(events, kind_of=lambda storage, phase: "weights" if storage == 1 else phase)
    assert found["forward"] == {"weights": 10, "forward": 12}
    assert found["backward"] == {"weights": 10, "forward": 5, "backward": 1}
