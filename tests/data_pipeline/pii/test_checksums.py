"""Check digits catch what they promise to, and published numbers pass."""

import random

import pytest

from data_pipeline.pii import checksums
from data_pipeline.pii.secrets import entropy
from tests.data_pipeline.pii import labelled

PUBLISHED = [
    (checksums.luhn, "4111111111111111"),
    (checksums.luhn, "378282246310005"),
    (checksums.mod_97, "GB82WEST12345698765432"),
    (checksums.mod_97, "DE89370400440532013000"),
    (checksums.verhoeff, "2363"),
    (checksums.verhoeff, "234123412346"),
    (checksums.mod_11_2, "11010519491231002X"),
    (checksums.cpf, "52998224725"),
    (checksums.pesel, "44051401359"),
    (checksums.nir, "255081416802538"),
    (checksums.codice_fiscale, "RSSMRA85T10A562S"),
]


@pytest.mark.parametrize(("check", "number"), PUBLISHED)
def test_every_wrong_digit_is_caught(check, number: str) -> None:
    assert check(number)
    for place, sign in enumerate(number):
        for other in "0123456789":
            changed = number[:place] + other + number[place + 1 :]
            if sign.isdigit() and other != sign and len(set(changed)) > 1:
                caught = not check(changed)
                # Two digits of a CPF and a year of a PESEL can be wrong together, one alone not.
                assert caught


@pytest.mark.parametrize(
    ("check", "other", "length"),
    [(checksums.luhn, labelled.luhn, 16), (checksums.cpf, labelled.cpf_ok, 11)],
)
def test_against_another_statement_of_the_rule(check, other, length: int) -> None:
    generator = random.Random(0)
    numbers = [labelled.digits(generator, length) for _ in range(3000)]
    assert [check(number) for number in numbers] == [other(number) for number in numbers]


def test_verhoeff_catches_swapped_neighbours() -> None:
    generator = random.Random(0)
    for _ in range(300):
        number = labelled.completed(labelled.digits(generator, 11) + "?", checksums.verhoeff)
        for place in range(11):
            left, right = number[place : place + 2]
            if left != right:
                assert not checksums.verhoeff(number[:place] + right + left + number[place + 2 :])


def test_dates_and_letters() -> None:
    assert checksums.is_date(2024, 2, 29)
    assert not checksums.is_date(2023, 2, 29)
    assert not checksums.is_date(0, 1, 1)
    assert checksums.spanish_letter(12345678) == "Z"
    assert not checksums.cpf("11111111111")


def test_entropy() -> None:
    assert entropy("aaaa") == 0
    assert entropy("abcd") == 2
    assert entropy("aabb") == 1
