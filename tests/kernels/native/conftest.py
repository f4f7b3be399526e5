"""What the tests of the compiled kernels share."""

import pytest
import torch

from swin_mim.kernels.native import attention, gelu


@pytest.fixture
def threads():
    """Sets the number of torch's threads, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def compiled():
    """The kernels work here, or there is no compiler and the test is skipped."""
    reasons = [kernel.failure_reason() for kernel in (attention, gelu)]
    for reason in reasons:
        if "there is no C++ compiler" in reason:
            pytest.skip(reason)
    assert reasons == ["", ""]
