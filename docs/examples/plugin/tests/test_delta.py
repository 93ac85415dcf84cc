"""Delta by the laws of seqbatch: `pip install .[test]`, then `pytest`."""

from delta_layer import Delta

from seqbatch.testing import check_encoder


def test_the_encoder_obeys_the_laws() -> None:
    check_encoder(Delta(3).double(), (3,))
