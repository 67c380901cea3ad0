"""The latent-factor heat map."""

import numpy as np
import pytest

from strucfast.plots import mutual_information_matrix
from strucfast.plots.matrices import normalised_information


def test_shares_are_of_the_factors_entropy_and_a_constant_factor_gives_zero():
    shares = normalised_information([[0.5, 0.0], [0.25, 0.0]], [0.5, 0.0])
    assert shares.tolist() == [[1.0, 0.0], [0.5, 0.0]]


def test_matrix_shows_names_and_values(mig):
    figure = mutual_information_matrix(
        mig.mutual_information, mig.factor_entropy, factor_names=["column", "row", "red$"], latent_names=list("abcd")
    )
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["column", "row", "red$"]
    assert [label.get_text() for label in axes.get_yticklabels()] == list("abcd")
    shown = np.array([float(text.get_text()) for text in axes.texts]).reshape(4, 3)
    np.testing.assert_allclose(shown, mig.mutual_information / np.log(4), atol=0.00501)
    np.testing.assert_allclose(axes.images[0].get_array(), mig.mutual_information / np.log(4))
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"factor_names": ["a"]}, "factor_names: expected 3"), ({"latent_names": []}, "latent_names: expected 4")],
)
def test_wrong_number_of_names(mig, options, words):
    with pytest.raises(ValueError, match=words):
        mutual_information_matrix(mig.mutual_information, mig.factor_entropy, **options)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"expected shapes \(D, K\) and \(K,\), got \(2, 3\) and \(2,\)"):
        mutual_information_matrix(np.zeros((2, 3)), np.zeros(2))
